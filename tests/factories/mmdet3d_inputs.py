"""Frames as mmdet3d itself reads them."""

from cache.nuscenes.frames import Frames
from cache.teacher.mmdet3d_config import mmdet3d_scope, read_config
from cache.teacher.mmdet3d_points import transforms_of


def mmdet3d_batch(frames: Frames, config: str) -> dict:
    """The first frame, which has no past sweeps, through a configuration's own test pipeline."""
    import mmdet3d.datasets  # noqa: F401
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.dataset import Compose, pseudo_collate

    with mmdet3d_scope():
        pipeline = Compose(transforms_of(read_config(config), "test_dataloader"))
        frame = {"lidar_points": {"lidar_path": str(frames[0].sweeps[0].path)}, "timestamp": 0.0}
        return pseudo_collate([pipeline(frame | {"box_type_3d": LiDARInstance3DBoxes})])
