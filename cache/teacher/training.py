"""Train a teacher with mmengine's Runner on our frames instead of mmdet3d's info files."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cache.errors import TeacherError
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.spec import CLASSES, PointPipeline
from cache.teacher.mmdet3d_config import Config, mmdet3d_scope, read_config
from cache.teacher.mmdet3d_detector import Detector, build_detector, tasks_of
from cache.teacher.mmdet3d_points import point_pipeline, transforms_of, type_name
from cache.teacher.mmdet3d_voxels import CpuVoxels, rows_along_x, voxelises_itself
from cache.teacher.sparse import sparse_convolutions, training_on_cpu

LOADING = ("LoadPointsFromFile", "LoadPointsFromMultiSweeps", "LoadAnnotations3D")
"""Steps of mmdet3d's pipelines that our frames have already done."""
CHECKPOINT = "teacher.pth"


def train_teacher(config: str, frames: Sequence[Frame], out: Path, seed: int = 0) -> Path:
    """Train a centre detector as its mmdet3d configuration says: augmentation, batches, optimiser, schedule.

    mmengine's logs and the weights after the latest epoch are kept in `out`.

    Args:
        config: a .py file, or a name of mmdet3d's model zoo.
        frames: key frames with boxes.
        out: a folder, created if it does not exist.
        seed: of weights, order and augmentation.

    Returns:
        The checkpoint's path, out/teacher.pth, for `load_teacher`.

    Raises:
        TeacherError: mmdet3d is missing, the configuration is no centre detector's or describes no training.
        DataError: a LiDAR file is missing or broken.
    """
    resolved = read_config(config)
    missing = [key for key in ("train_dataloader", "train_cfg", "optim_wrapper") if not resolved.get(key)]
    if missing:
        raise TeacherError("the configuration describes no training", where=config, expected=", ".join(missing))
    torch.manual_seed(seed)
    detector = build_detector(resolved)
    if voxelises_itself(detector):
        detector.pts_voxel_layer = CpuVoxels(detector.pts_voxel_layer, rows_along_x(detector, config))
    else:
        preprocessor = detector.data_preprocessor
        preprocessor.voxel_layer = _VoxelsOnCpu(preprocessor.voxel_layer)
    with mmdet3d_scope():
        loader = _loader(resolved, frames, detector, seed)
        runner = _runner(resolved, detector, loader, out, seed)
        sparse_on_cpu = sparse_convolutions(detector) and not torch.cuda.is_available()
        with training_on_cpu() if sparse_on_cpu else nullcontext():
            runner.train()
    return out / CHECKPOINT


def _loader(config: Config, frames: Sequence[Frame], detector: Detector, seed: int) -> DataLoader:
    import mmdet3d.datasets  # noqa: F401  (importing it registers its transforms)
    from mmengine.dataset import Compose, DefaultSampler, pseudo_collate

    steps = [step for step in transforms_of(config, "train_dataloader") if type_name(step) not in LOADING]
    pasting = [type_name(step) for step in steps if type_name(step) in ("ObjectSample", "UnifiedObjectSample")]
    if pasting:
        raise TeacherError(
            "ground-truth pasting needs a database of objects, which is not made here",
            where=f"{config.filename}, train_dataloader",
            got=", ".join(pasting),
            cure="Take the step out of the train pipeline, or train with mmdet3d's own tools",
        )
    classes = [name for task in tasks_of(detector, config) for name in task]
    pipeline = point_pipeline(config)
    frames = frames.with_sweeps(pipeline.past_sweeps) if isinstance(frames, Frames) else frames
    dataset = _TrainingFrames(frames, pipeline, classes, Compose(steps))
    workers = config.train_dataloader.get("num_workers", 0)
    return DataLoader(
        dataset,
        batch_size=config.train_dataloader.batch_size,
        sampler=DefaultSampler(dataset, shuffle=True, seed=seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=pseudo_collate,
    )


def _runner(config: Config, detector: Detector, loader: DataLoader, out: Path, seed: int) -> Any:
    """The Runner gets parts of the configuration: the whole one would be formatted, in seconds, for each checkpoint."""
    from mmengine.runner import Runner

    runner = Runner(
        model=detector,
        work_dir=str(out),
        train_dataloader=loader,
        train_cfg=config.train_cfg,
        optim_wrapper=config.optim_wrapper,
        param_scheduler=config.get("param_scheduler"),
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": len(loader)},
            "checkpoint": {
                "type": "CheckpointHook",
                "filename_tmpl": CHECKPOINT,
                "interval": 1,
                "save_optimizer": False,
            },
        },
        custom_hooks=config.get("custom_hooks"),
        randomness={"seed": seed},
        default_scope="mmdet3d",
        experiment_name=out.name,  # mmengine names its loggers by it and the second: trainings must not share one.
        log_level="WARNING",  # While it is set up, mmengine lists the machine, the hooks and every parameter.
    )
    for logger in (runner.logger, *runner.logger.handlers):
        logger.setLevel(logging.INFO)
    return runner


class _VoxelsOnCpu(nn.Module):
    """mmdet3d's voxel layer, run where mmcv's operators are always built, whatever device the points are on."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.voxel_size, self.point_cloud_range = layer, layer.voxel_size, layer.point_cloud_range

    def forward(self, points: Tensor) -> Tensor | tuple[Tensor, ...]:
        voxels = self.layer(points.cpu())
        if isinstance(voxels, Tensor):
            return voxels.to(points.device)
        return tuple(part.to(points.device) for part in voxels)


class _TrainingFrames(Dataset):
    """Our frames in the form of mmdet3d's pipelines: points, boxes and labels, then its own augmentation."""

    def __init__(
        self, frames: Sequence[Frame], pipeline: PointPipeline, classes: Sequence[str], augment: Callable[[dict], dict]
    ) -> None:
        self.frames, self.pipeline, self.augment = frames, pipeline, augment
        self.label_of = np.asarray([classes.index(name) if name in classes else -1 for name in CLASSES])

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict:
        from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints

        frame = self.frames[index]
        labels = self.label_of[frame.labels]
        points = load_points(frame, self.pipeline)
        return self.augment(
            {
                "points": LiDARPoints(points, points_dim=points.shape[1]),
                "gt_bboxes_3d": LiDARInstance3DBoxes(frame.boxes[labels >= 0], box_dim=9),
                "gt_labels_3d": labels[labels >= 0],
                "box_type_3d": LiDARInstance3DBoxes,
            }
        )
