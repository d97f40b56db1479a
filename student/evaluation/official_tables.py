"""nuScenes-devkit's evaluation of some frames alone, on tables made from their index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
    load_prediction_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from cache.nuscenes.columns import NO_ROW
from cache.nuscenes.frames import Frames
from cache.spec import LIDAR


class OfficialEval(DetectionEval):
    """The devkit's evaluation of a submission (configuration detection_cvpr_2019), on frames of any split.

    DetectionEval's own constructor takes a name of its splits, and asks the first box for its kind, of which there is
    none where nothing was detected. This one loads and filters the boxes by the same functions.

    Args:
        results: a submission, with an entry for each frame.
        out: folder for the devkit's files.
    """

    def __init__(self, frames: Frames, results: Path, out: Path) -> None:
        self.nusc, self.cfg = FramesTables(frames), config_factory("detection_cvpr_2019")
        self.result_path, self.output_dir = str(results), str(out)
        self.eval_set, self.verbose = ", ".join(frames.splits), False
        tokens, most = list(frames.tokens), self.cfg.max_boxes_per_sample
        truth = load_gt_of_sample_tokens(self.nusc, tokens, DetectionBox)
        found, self.meta = load_prediction_of_sample_tokens(self.result_path, most, DetectionBox, tokens)
        self.gt_boxes, self.pred_boxes = self._filtered(truth), self._filtered(found)
        self.sample_tokens = self.gt_boxes.sample_tokens

    def _filtered(self, boxes: EvalBoxes) -> EvalBoxes:
        """The boxes within their class's range, with points, and not in a bicycle rack."""
        boxes = add_center_dist(self.nusc, boxes)
        return filter_eval_boxes(self.nusc, boxes, self.cfg.class_range) if boxes.all else boxes


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
            prev="" if before == NO_ROW else str(before),
            next="" if after == NO_ROW else str(after),
        )


def _record(row: int, **values: object) -> dict:
    return {"token": str(row), **values}
