"""Detections of a cached teacher, decoded from its stored head maps."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from cache.geometry.views import transform_boxes
from cache.spec import CacheSpec
from cache.store.reader import TeacherCache
from student.data.dataset import LabelledBoxes
from student.models.decoding import Detections, decode


def teacher_detections(cache: TeacherCache, tokens: Iterable[str]) -> Iterator[tuple[str, Detections]]:
    """Decode the teacher's stored heatmaps and head maps as its own configuration does.

    The boxes are those of the store's first view, transformed back to the LiDAR frame.

    Raises:
        NotCachedError: a token or the head maps were not dumped.
        MismatchError: the maps are not in the LiDAR frame with a row for each y, or the teacher has no heatmaps.
    """
    teacher = cache.spec.teacher
    require_heatmap(cache.spec, cache.path)
    require_lidar_grid(cache.spec.heatmap_grid, cache.path)
    for token in tokens:
        batch = cache.read((token,), layers=(), head_maps=True)
        maps = {name: value.float() for name, value in batch.head_maps.items()}
        heatmap = batch.heatmap.float() / 255
        (found,) = decode(heatmap, maps, cache.spec.heatmap_grid, teacher.tasks, teacher.decoding)
        yield token, to_lidar_frame(found, batch.view_matrix[0].numpy())


def predicted_boxes(cache: TeacherCache, tokens: Iterable[str], least_score: float) -> dict[str, LabelledBoxes]:
    """The teacher's boxes of some score and their labels by token, to train on in place of annotations.

    Raises:
        NotCachedError, MismatchError: as `teacher_detections`.
    """
    found = teacher_detections(cache, tokens)
    chosen = ((token, detections[detections.scores >= least_score]) for token, detections in found)
    return {token: (detections.boxes.numpy(), detections.labels.numpy()) for token, detections in chosen}


def require_heatmap(spec: CacheSpec, where: Path) -> None:
    """Check that a store holds heatmaps.

    Raises:
        MismatchError: its teacher's head has none.
    """
    if spec.heatmap == "none":
        raise MismatchError(
            "boxes cannot be decoded from a store of a teacher without heatmaps",
            where=where,
            got=f"{spec.teacher.name}, heatmap: none",
            expected="a teacher with a CenterHead",
            cure="Distil its features from this store, and evaluate the teacher with mmdet3d",
        )


def require_lidar_grid(grid: BevGrid, where: Path) -> None:
    """Check that a heatmap is in the LiDAR frame, with a row for each y, as decoding needs it.

    Raises:
        MismatchError: its frame or axes differ.
    """
    if (grid.frame, grid.axes) != ("lidar", "yx"):
        raise MismatchError(
            "boxes cannot be decoded from maps of another frame or other axes",
            where=where,
            got=f"frame {grid.frame}, axes {grid.axes}",
            expected="frame lidar, axes yx",
            cure="Distil from this store, and evaluate its teacher with its own code",
        )


def to_lidar_frame(found: Detections, matrix: Float[np.ndarray, "4 4"]) -> Detections:
    """Transform detections from a BEV-augmented frame back to the LiDAR frame."""
    boxes = transform_boxes(found.boxes.numpy(), np.linalg.inv(matrix.astype(np.float64)))
    return replace(found, boxes=torch.from_numpy(boxes))
