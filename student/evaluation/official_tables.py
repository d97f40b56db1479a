"""nuScenes-devkit's view of the evaluated frames alone, made from their index."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from nuscenes.nuscenes import NuScenes

from cache.errors import DataError
from cache.nuscenes.columns import NONE, SEVERAL
from cache.nuscenes.frames import LIDAR, Frames
from cache.nuscenes.splits import SPLITS_FILE

VERSIONS = {
    "trainval": ("train", "val", "train_detect", "train_track"),
    "mini": ("mini_train", "mini_val"),
    "test": ("test",),
}
"""The ends of versions' names, and the splits that the devkit evaluates in them."""

OWN_SPLIT = "evaluated"
"""What any other split is called while the devkit evaluates it."""


@contextmanager
def official_tables(frames: Frames) -> Iterator[tuple[NuScenes, str]]:
    """What DetectionEval opens: tables of the frames and no others, and the name of the split.

    A split that is not nuScenes' own reaches the devkit through its file of custom splits, in a temporary folder.

    Raises:
        DataError: a box has several attributes.
    """
    tables = FramesTables(frames)
    if any(frames.splits == (split,) for end in VERSIONS if frames.version.endswith(end) for split in VERSIONS[end]):
        yield tables, frames.splits[0]
        return
    with TemporaryDirectory() as folder:
        tables.dataroot = folder
        beside = Path(folder) / frames.version
        beside.mkdir(parents=True)
        (beside / SPLITS_FILE).write_text(json.dumps({OWN_SPLIT: [scene["name"] for scene in tables.scene]}))
        yield tables, OWN_SPLIT


class FramesTables(NuScenes):
    """The devkit's object with the records that an evaluation reads; tokens but those of key frames are row numbers.

    There are no maps and no logs, no files but the key frames' LiDAR, and no explorer.
    """

    def __init__(self, frames: Frames) -> None:
        self.version, self.dataroot, self.verbose = frames.version, str(frames.root), False
        self.table_names = [
            "category", "attribute", "instance", "sensor", "calibrated_sensor", "ego_pose", "scene", "sample",
            "sample_data", "sample_annotation",
        ]  # fmt: skip
        names, rows = frames.tables.names, frames.rows().tolist()
        self.category = [_record(i, name=name) for i, name in enumerate(names.categories)]
        self.instance = [_record(i, category_token=str(i)) for i in range(len(names.categories))]
        self.attribute = [_record(i, name=name) for i, name in enumerate(names.attributes)]
        self.sensor = [_record(0, channel=LIDAR, modality="lidar")]
        self.calibrated_sensor = [_record(0, sensor_token="0")]
        self.log: list[dict] = []
        self.map: list[dict] = [_record(0, log_tokens=[])]
        self._add_samples(frames, rows)
        self.sample_annotation = [box for row in rows for box in _boxes(frames, row)]
        self.__make_reverse_index__(False)

    def _add_samples(self, frames: Frames, rows: list[int]) -> None:
        columns, scenes = frames.tables.columns, frames.tables.names.scenes
        of_scene = columns.sample_scene[rows].tolist()
        self.scene = [_record(i, name=scenes[i]) for i in sorted(set(of_scene))]
        self.sample = [
            {"token": token, "scene_token": str(scene), "timestamp": time_us}
            for token, scene, time_us in zip(
                frames.tokens, of_scene, columns.sample_time_us[rows].tolist(), strict=True
            )
        ]
        files = [frames.file_row(token, row, frames.lidar) for token, row in zip(frames.tokens, rows, strict=True)]
        poses = columns.pose[columns.file_pose[files]].tolist()
        self.ego_pose = [
            _record(file, translation=pose[:3], rotation=pose[3:]) for file, pose in zip(files, poses, strict=True)
        ]
        self.sample_data = [
            _record(file, sample_token=token, ego_pose_token=str(file), calibrated_sensor_token="0", is_key_frame=True)
            for token, file in zip(frames.tokens, files, strict=True)
        ]


def _boxes(frames: Frames, row: int) -> Iterator[dict]:
    """The annotations of a key frame."""
    columns, token = frames.tables.columns, frames.tables.columns.sample_token[row].decode()
    boxes = np.arange(*columns.sample_boxes[row : row + 2])
    values = zip(
        boxes.tolist(),
        columns.box_center[boxes].tolist(),
        columns.box_size[boxes].tolist(),
        columns.box_rotation[boxes].tolist(),
        columns.box_points[boxes].tolist(),
        columns.box_category[boxes].tolist(),
        columns.box_attribute[boxes].tolist(),
        columns.box_previous[boxes].tolist(),
        columns.box_next[boxes].tolist(),
        strict=True,
    )
    for box, center, size, rotation, (lidar, radar), category, attribute, before, after in values:
        if attribute == SEVERAL and frames.tables.names.classes[category] is not None:
            raise DataError(
                "a box has several attributes, and the official metrics take one",
                where=f"sample_annotation.json, a {frames.tables.names.categories[category]} of token {token}",
                cure="Leave one of them, or none",
            )
        yield _record(
            box,
            sample_token=token,
            instance_token=str(category),
            attribute_tokens=[] if attribute < 0 else [str(attribute)],
            translation=center,
            size=size,
            rotation=rotation,
            num_lidar_pts=lidar,
            num_radar_pts=radar,
            prev="" if before == NONE else str(before),
            next="" if after == NONE else str(after),
        )


def _record(row: int, **values: object) -> dict:
    return {"token": str(row), **values}
