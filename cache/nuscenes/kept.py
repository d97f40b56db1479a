"""Frames kept in a store: the rows of the index that their scenes need, for machines without nuScenes' tables."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Bool, Shaped

from cache.nuscenes.columns import NONE, Columns
from cache.nuscenes.frames import Frames
from cache.nuscenes.index_files import KEPT, read_index, write_index
from cache.nuscenes.splits import custom_splits


def keep_frames(frames: Frames, store: Path) -> None:
    """Write the index of the frames' scenes into a store, unless it is there and intact.

    Splits of splits.json are kept under their names.

    Raises:
        OSError: it cannot be written.
    """
    path = store / KEPT
    if path.is_dir() and isinstance(read_index(path), tuple):
        return
    own = custom_splits(frames.root / frames.version)
    names = msgspec.structs.replace(frames.tables.names, splits={**own, **frames.tables.names.splits})
    wanted = np.zeros(len(names.scenes), dtype=bool)
    wanted[frames.tables.columns.sample_scene[frames.rows()]] = True
    try:
        write_index(of_scenes(frames.tables.columns, wanted), names, path, frames.version)
    except OSError:
        if not isinstance(read_index(path), tuple):  # another part of the dump may have been faster
            raise


def damaged_files(store: Path, tokens: Sequence[str]) -> list[str]:
    """The damaged files of the frames that a store carries; none where it carries no frames.

    Args:
        tokens: of the store's samples, all of which must be among the frames.
    """
    if not (store / KEPT).is_dir():
        return []
    found = read_index(store / KEPT)
    if isinstance(found, list):
        return found
    return ["sample_token.npy"] if (found[0].rows(tokens) < 0).any() else []


def of_scenes(columns: Columns, scenes: Bool[np.ndarray, "scenes"]) -> Columns:
    """The rows of some scenes; what refers to a row that is left out refers to none."""
    sample = scenes[columns.sample_scene]
    counts = np.diff(columns.sample_boxes)
    file = _reached(columns, sample)
    pose, calibration = (np.zeros(len(rows), dtype=bool) for rows in (columns.pose, columns.calibration))
    pose[columns.file_pose[file]] = calibration[columns.file_calibration[file]] = True
    kept = {"sample": sample, "file": file, "pose": pose, "calibration": calibration, "box": np.repeat(sample, counts)}
    kept["intrinsics"] = calibration
    refers = {
        "sample_previous": "sample", "sample_files": "file", "file_previous": "file", "file_pose": "pose",
        "file_calibration": "calibration", "box_previous": "box", "box_next": "box",
    }  # fmt: skip
    found: dict[str, np.ndarray] = {}
    for name in (field.name for field in fields(Columns) if field.name not in ("sample_order", "sample_boxes")):
        rows = getattr(columns, name)[kept[name.split("_")[0]]]
        found[name] = _renumbered(rows, kept[refers[name]]) if name in refers else rows
    return Columns(
        **found,
        sample_order=np.argsort(found["sample_token"], kind="stable").astype(np.int32),
        sample_boxes=np.concatenate([[0], np.cumsum(counts[sample])]).astype(np.int32),
    )


def _reached(columns: Columns, sample: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "D"]:
    """The files of key frames, and the LiDARs' rotations before them."""
    reached = np.zeros(len(columns.file_name), dtype=bool)
    files = columns.sample_files[sample].reshape(-1)
    while len(files := files[files != NONE]):
        files = files[~reached[files]]
        reached[files] = True
        files = columns.file_previous[files]
    return reached


def _renumbered(rows: Shaped[np.ndarray, "*n"], kept: Bool[np.ndarray, "rows"]) -> Shaped[np.ndarray, "*n"]:
    """Row numbers among the rows that are kept."""
    if not len(kept):
        return rows
    numbers = np.where(kept, np.cumsum(kept) - 1, NONE).astype(np.int32)
    return np.where(rows == NONE, NONE, numbers[rows]).astype(np.int32)
