"""A cached teacher's boxes, from the maps of its head."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from cache.geometry.views import transform_boxes
from cache.store.reader import TeacherCache
from student.models.decoding import Detections, decode


def teacher_detections(cache: TeacherCache, tokens: Iterable[str]) -> Iterator[tuple[str, Detections]]:
    """The teacher's boxes from its stored heatmaps and head maps, decoded as its own configuration says.

    They are those of the store's first view, in the LiDAR frame whatever that view did to it.

    Raises:
        NotCachedError: a token or the head maps were not dumped.
        MismatchError: the maps do not lie in the LiDAR frame, a row for each y.
    """
    teacher = cache.spec.teacher
    require_lidar_rows(cache.spec.heatmap_grid, cache.path)
    for token in tokens:
        batch = cache.read((token,), layers=(), head_maps=True)
        maps = {name: value.float() for name, value in batch.head_maps.items()}
        heatmap = batch.heatmap.float() / 255
        (found,) = decode(heatmap, maps, cache.spec.heatmap_grid, teacher.tasks, teacher.decoding)
        yield token, moved_back(found, batch.view_matrix[0].numpy())


def require_lidar_rows(grid: BevGrid, where: Path) -> None:
    """Insist on a heatmap in the LiDAR frame, with a row for each y: boxes are decoded from such alone.

    Raises:
        MismatchError: its frame or its axes are others.
    """
    if (grid.frame, grid.axes) != ("lidar", "yx"):
        raise MismatchError(
            "boxes cannot be decoded from maps of another frame or other axes",
            where=where,
            got=f"frame {grid.frame}, axes {grid.axes}",
            expected="frame lidar, axes yx",
            cure="Distil from this store, and evaluate its teacher with its own code",
        )


def moved_back(found: Detections, matrix: Float[np.ndarray, "4 4"]) -> Detections:
    """What was found under a BEV matrix, in the LiDAR frame again."""
    boxes = transform_boxes(found.boxes.numpy(), np.linalg.inv(matrix.astype(np.float64)))
    return replace(found, boxes=torch.from_numpy(boxes))
