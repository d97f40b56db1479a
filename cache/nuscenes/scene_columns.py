"""The rows of the index that some scenes need, for stores that carry their frames."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import msgspec
import numpy as np
from jaxtyping import Bool, Int, Shaped

from cache.nuscenes.columns import NO_ROW, Columns
from cache.nuscenes.index_files import IndexFiles, TableIndex

ROWS_OF = {
    "sample_order": "sample_token", "sample_previous": "sample_token", "sample_files": "file_name",
    "file_previous": "file_name", "file_pose": "pose", "file_calibration": "calibration",
    "box_previous": "box_center", "box_next": "box_center",
}  # fmt: skip
"""The columns of row numbers, and a column of the rows that they number."""


def files_of_scenes(
    index: TableIndex, samples: Int[np.ndarray, "n"], own_splits: Mapping[str, Sequence[str]], version: str
) -> IndexFiles:
    """The files of an index of the scenes of some key frames.

    Args:
        samples: the rows of the key frames.
        own_splits: those of splits.json, kept under their names.
    """
    splits = {name: tuple(scenes) for name, scenes in own_splits.items()}
    names = msgspec.structs.replace(index.names, splits={**splits, **index.names.splits})
    wanted = np.zeros(len(names.scenes), dtype=bool)
    wanted[index.columns.sample_scene[samples]] = True
    return IndexFiles(columns_of_scenes(index.columns, wanted), names, version)


def columns_of_scenes(columns: Columns, scenes: Bool[np.ndarray, "scenes"]) -> Columns:
    """The rows of some scenes; what refers to a row that is left out refers to none."""
    sample = scenes[columns.sample_scene]
    counts = np.diff(columns.sample_boxes)
    file = _reached(columns, sample)
    pose, calibration = (np.zeros(len(rows), dtype=bool) for rows in (columns.pose, columns.calibration))
    pose[columns.file_pose[file]] = calibration[columns.file_calibration[file]] = True
    kept = {"sample": sample, "file": file, "pose": pose, "calibration": calibration, "box": np.repeat(sample, counts)}
    kept["intrinsics"] = calibration
    found: dict[str, np.ndarray] = {}
    for name in (field.name for field in fields(Columns) if field.name not in ("sample_order", "sample_boxes")):
        rows = getattr(columns, name)[kept[name.split("_")[0]]]
        found[name] = _renumbered(rows, kept[ROWS_OF[name].split("_")[0]]) if name in ROWS_OF else rows
    return Columns(
        **found,
        sample_order=np.argsort(found["sample_token"], kind="stable").astype(np.int32),
        sample_boxes=np.concatenate([[0], np.cumsum(counts[sample])]).astype(np.int32),
    )


def _reached(columns: Columns, sample: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "D"]:
    """The files of key frames, and the LiDARs' rotations before them."""
    reached = np.zeros(len(columns.file_name), dtype=bool)
    files = columns.sample_files[sample].reshape(-1)
    while len(files := files[files != NO_ROW]):
        files = files[~reached[files]]
        reached[files] = True
        files = columns.file_previous[files]
    return reached


def _renumbered(rows: Shaped[np.ndarray, "*n"], kept: Bool[np.ndarray, "rows"]) -> Shaped[np.ndarray, "*n"]:
    """Row numbers among the rows that are kept."""
    if not len(kept):
        return rows
    numbers = np.where(kept, np.cumsum(kept) - 1, NO_ROW).astype(np.int32)
    return np.where(rows == NO_ROW, NO_ROW, numbers[rows]).astype(np.int32)
