"""Small frames with an index of their own, so that their stores carry frames."""

from dataclasses import dataclass, fields

import numpy as np

from cache.nuscenes.columns import NO_ROW, Columns, Names
from cache.nuscenes.index_files import IndexFiles, TableIndex
from cache.spec import CLASSES, LIDAR
from tests.factories.stores import SmallFrames


@dataclass(frozen=True, kw_only=True)
class CarriedFrames(SmallFrames):
    """SmallFrames of one scene, with two boxes each; `seed` draws poses and boxes."""

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tables", make_index(self.tokens, self.seed))


def make_index(tokens: tuple[str, ...], seed: int = 0) -> TableIndex:
    """An index of one LiDAR file for each frame, and of a car and a pedestrian."""
    random, count = np.random.default_rng(seed), len(tokens)
    rows = np.arange(count, dtype=np.int32)
    columns = {
        "sample_token": np.array([token.encode() for token in tokens]),
        "sample_order": np.argsort(np.array(tokens), kind="stable").astype(np.int32),
        "sample_scene": np.zeros(count, np.int32),
        "sample_time_us": 10**15 + 500_000 * rows.astype(np.int64),
        "sample_previous": rows - 1,
        "sample_boxes": 2 * np.arange(count + 1, dtype=np.int32),
        "sample_files": rows[:, None],
        "file_name": np.array([f"{token}.bin".encode() for token in tokens]),
        "file_time_us": 10**15 + 500_000 * rows.astype(np.int64),
        "file_previous": np.full(count, NO_ROW, np.int32),
        "file_size": np.zeros((count, 2), np.int32),
        "file_pose": rows,
        "file_calibration": np.zeros(count, np.int32),
        "pose": np.column_stack([random.normal(size=(count, 3)), np.tile([1.0, 0, 0, 0], (count, 1))]),
        "calibration": np.array([[0, 0, 1.8, 1, 0, 0, 0]]),
        "intrinsics": np.full((1, 3, 3), np.nan),
        "box_center": random.uniform(-8, 8, (2 * count, 3)),
        "box_size": random.uniform(1, 4, (2 * count, 3)),
        "box_rotation": np.tile([1.0, 0, 0, 0], (2 * count, 1)),
        "box_velocity": np.full((2 * count, 3), np.nan),
        "box_points": np.full((2 * count, 2), 5, np.int32),
        "box_category": np.tile(np.array([0, 1], np.int16), count),
        "box_attribute": np.full(2 * count, NO_ROW, np.int16),
        "box_previous": np.arange(2 * count, dtype=np.int32) - 2,
        "box_next": np.arange(2 * count, dtype=np.int32) + 2,
    }
    columns["box_previous"][:2] = columns["box_next"][-2:] = NO_ROW
    assert columns.keys() == {field.name for field in fields(Columns)}
    categories = ("vehicle.car", "human.pedestrian.adult")
    names = Names(
        scenes=("scene-0061",), channels=(LIDAR,), lidars=(LIDAR,), cameras=(), categories=categories,
        classes=(CLASSES[0], "pedestrian"), attributes=(), splits={"mini_train": ("scene-0061",)}, official=categories,
    )  # fmt: skip
    return TableIndex(columns=Columns(**columns), names=names)


def make_files(tokens: tuple[str, ...]) -> IndexFiles:
    """The files of such an index."""
    index = make_index(tokens)
    return IndexFiles(index.columns, index.names, "v1.0-mini")
