"""What the tables hold for a training or a dump, counted before it starts, and what is suspicious about it."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import DataError, OfflineDistillWarning
from cache.nuscenes.frames import Frames
from cache.nuscenes.splits import ALL, custom_splits
from cache.spec import CLASSES

FASTEST_MPS = 100.0
"""Nothing on a road is faster; a box that is has wrong times, or tracks that mix objects."""


@dataclass(frozen=True, kw_only=True)
class BoxCounts:
    """The annotations of some frames.

    by_class: of the ten classes and holding a point: those of `Frame.boxes`.
    empty: of the ten classes and dropped for holding no point.
    uncounted: those of `empty` with a point count below 0.
    fast: those of `by_class` beyond 100 m/s.
    unknown: by category, of a category that nuScenes does not have.
    """

    frames: int
    by_class: dict[str, int]
    empty: int
    uncounted: int
    fast: int
    unknown: dict[str, int]

    @property
    def boxes(self) -> int:
        """Of all classes."""
        return sum(self.by_class.values())

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count:,}" for name, count in self.by_class.items() if count)
        listed = f" ({classes})" if classes else ""
        return f"{self.frames:,} frames, {self.boxes:,} boxes{listed}, {self.empty:,} without a point left out"


def count_boxes(frames: Frames) -> BoxCounts:
    """Count the annotations of frames, without building the frames."""
    columns, names = frames.tables.columns, frames.tables.names
    boxes, _ = frames.box_rows()
    labels, kept = frames.box_labels(boxes)
    dropped = (labels >= 0) & ~kept
    counts = np.bincount(labels[kept], minlength=len(CLASSES)).tolist()
    speeds_mps = np.linalg.norm(columns.box_velocity[boxes[kept]][:, :2], axis=1)
    categories = np.bincount(columns.box_category[boxes[labels < 0]], minlength=len(names.categories)).tolist()
    return BoxCounts(
        frames=len(frames),
        by_class=dict(zip(CLASSES, counts, strict=True)),
        empty=int(dropped.sum()),
        uncounted=int((columns.box_points[boxes[dropped]] < 0).any(axis=1).sum()),
        fast=int((speeds_mps > FASTEST_MPS).sum()),
        unknown={
            name: count
            for name, count in zip(names.categories, categories, strict=True)
            if count and name not in names.official
        },
    )


def warn_of_boxes(counts: BoxCounts, where: str) -> None:
    """Warn of boxes that are likely to be mistakes of the tables.

    Args:
        where: version and splits.
    """
    found = {
        f"{counts.uncounted:,} boxes have a point count below 0 and are left out like those without a point: write the "
        "counts, or 1 where nobody counted": counts.uncounted,
        f"{counts.fast:,} boxes move faster than {FASTEST_MPS:.0f} m/s: check that timestamps are in microseconds and "
        "that prev and next of sample_annotation follow one object": counts.fast,
        f"{sum(counts.unknown.values()):,} boxes are of no detection class ({', '.join(counts.unknown)}): name the "
        "categories as nuScenes does, vehicle.car for one": counts.unknown,
        f"none of {counts.frames:,} frames has a box: {counts.empty:,} were dropped for holding no point": (
            counts.empty and not counts.boxes
        ),
    }
    for text, applies in found.items():
        if applies:
            warnings.warn(f"{where}: {text}", OfflineDistillWarning, stacklevel=2)


def require_boxes(counts: BoxCounts, where: str) -> None:
    """Raise unless there is a box to learn from.

    Raises:
        DataError: there is none.
    """
    if not counts.boxes:
        dropped = f"{counts.empty:,} annotations, all dropped for holding no point" if counts.empty else "no annotation"
        raise DataError(
            "the split has no boxes to learn from",
            where=where,
            got=f"{counts.frames:,} frames with {dropped}",
            expected="boxes of nuScenes' ten classes with num_lidar_pts + num_radar_pts above 0",
            cure="Check num_lidar_pts in sample_annotation.json and the names in category.json, or change the split",
        )


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What the index of a version's tables holds.

    path: None where it could not be kept.
    splits: the key frames of each split that has any.
    """

    path: Path | None
    bytes: int
    version: str
    scenes: int
    channels: tuple[str, ...]
    splits: dict[str, int]
    boxes: BoxCounts

    def __str__(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = (
            f"{self.version}: {self.scenes:,} scenes, {self.boxes}",
            f"splits: {splits or 'none'}",
            f"sensors: {', '.join(self.channels)}",
            f"index: {self.path or 'not kept'}, {self.bytes / 1e6:,.1f} MB",
        )
        return "\n".join(lines)


def summarise_index(root: Path, version: str) -> IndexSummary:
    """Open the index of a version's tables, made first where there is none, and count what it holds.

    Raises:
        DataError: the tables are missing, broken or hold no key frame.
    """
    frames = Frames(root=root, version=version, splits=(ALL,))
    names, scenes = frames.tables.names, frames.tables.columns.sample_scene
    of_scene = np.bincount(scenes, minlength=len(names.scenes))
    counted = dict.fromkeys((*names.splits, *custom_splits(Path(root) / version)), 0)
    for split in counted:
        wanted = frames.scenes_of(split)
        counted[split] = int(of_scene[[name in wanted for name in names.scenes]].sum())
    return IndexSummary(
        path=frames.tables.path,
        bytes=frames.tables.nbytes,
        version=version,
        scenes=len(names.scenes),
        channels=names.channels,
        splits={name: count for name, count in counted.items() if count},
        boxes=count_boxes(frames),
    )
