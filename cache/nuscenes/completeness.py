"""Whether the files of frames are there: in the tables, and on the disk."""

import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from cache.errors import ConfigError, DataError, OfflineDistillWarning
from cache.nuscenes.columns import NO_ROW
from cache.nuscenes.frames import Frames


def require_listed(frames: Frames, cameras: bool = True) -> None:
    """Raise unless the tables list every frame's LiDAR rotation, and its images with a size.

    Raises:
        DataError: they do not.
    """
    columns, rows = frames.tables.columns, frames.rows()
    for channel in (frames.lidar, *(frames.cameras if cameras else ())):
        files = _files(frames, rows, channel)
        if (files == NO_ROW).any():
            first = int((files == NO_ROW).argmax())
            frames.file_row(frames.tokens[first], int(rows[first]), channel)  # raises, and names what is there
        if channel != frames.lidar:
            unknown = np.isnan(columns.intrinsics[columns.file_calibration[files]]).any(axis=(1, 2))
            if unknown.any():
                frames[frames.tokens[int(unknown.argmax())]]  # raises, and names the camera
        sizes = columns.file_size[files]
        if channel != frames.lidar and (sizes < 1).any():
            first = int((sizes < 1).any(axis=1).argmax())
            raise DataError(
                "a camera image has no size in the tables",
                where=f"sample_data.json, {channel} of token {frames.tokens[first]}",
                got="{1} x {0}".format(*sizes[first].tolist()),
                expected="width and height in pixels",
                cure="Write the size of the image files into width and height",
            )


def largest_width(frames: Frames) -> int:
    """The width in pixels of the widest image."""
    columns, rows = frames.tables.columns, frames.rows()
    return max((int(columns.file_size[_files(frames, rows, name), 1].max()) for name in frames.cameras), default=1)


def without(frames: Frames, tokens: Collection[str]) -> Frames:
    """The frames but for some.

    Raises:
        ConfigError: the tables hold no such key frame, or none is left.
    """
    _require_known(
        frames,
        tokens,
        "excluded",
        "exclude",
        "Take these tokens out of `exclude`: they are mistyped, or of another version",
    )
    left = frames.keeping(lambda token: token not in tokens)
    if not left.tokens:
        raise ConfigError(
            "every frame of the split is excluded",
            where=f"exclude, {', '.join(frames.splits)}",
            got=f"{len(tokens)} tokens",
            cure="Take some tokens out of `exclude`, or choose another split",
        )
    return left


def only(frames: Frames, tokens: Collection[str]) -> Frames:
    """Some of the frames, in the tables' order.

    Raises:
        ConfigError: they hold no such key frame.
    """
    _require_known(frames, tokens, "used", "tokens", "Correct them, or name the version that they belong to")
    return frames.keeping(frozenset(tokens).__contains__)


def on_disk(frames: Frames, channels: Collection[str], history: int = 0, past_sweeps: int = 0) -> Frames:
    """The frames whose files of some channels are on the disk.

    Args:
        history: key frames before each frame whose files must be there too.
        past_sweeps: LiDAR rotations before each frame's own, likewise.

    Raises:
        DataError: there is none.
    """
    columns, names = frames.tables.columns, frames.tables.names
    there = _Folders()
    every = np.arange(len(columns.sample_token))
    wanted = frames.rows()
    needed, before = [wanted], wanted
    for _ in range(history):
        previous = columns.sample_previous[before]
        before = np.where(previous == NO_ROW, before, previous)
        needed.append(before)
    found = np.zeros(len(every), dtype=bool)
    used = np.unique(np.concatenate(needed))
    found[used] = _all_there(frames, used, [name for name in channels if name in names.channels], there)
    if past_sweeps:
        found[used] &= _sweeps_there(frames, used, past_sweeps, there)
    kept = np.logical_and.reduce([found[rows] for rows in needed])
    left = {token for token, keep in zip(frames.tokens, kept.tolist(), strict=True) if keep}
    if not left:
        raise DataError(
            "no frame of the split has all its files",
            where=f"{frames.root}, {', '.join(frames.splits)}",
            got=f"{len(frames)} frames, each with a file missing of {', '.join(channels)}",
            cure="Unpack the blobs that hold this split, or choose another",
        )
    return frames.keeping(left.__contains__)


def warn_of_missing(frames: Frames, found: Frames, setting: str) -> None:
    """Warn of the frames that `on_disk` did not find, if there are any, and name the setting that leaves them out."""
    if len(found) < len(frames):
        where, lost = f"{frames.version}, {', '.join(frames.splits)}", len(frames) - len(found)
        text = f"{where}: {lost:,} of {len(frames):,} frames lack a file and are left out ({setting})"
        warnings.warn(text, OfflineDistillWarning, stacklevel=3)


def _require_known(frames: Frames, tokens: Collection[str], purpose: str, where: str, cure: str) -> None:
    rows = frames.tables.rows(list(tokens))
    unknown = [token for token, row in zip(tokens, rows.tolist(), strict=True) if row < 0]
    if unknown:
        raise ConfigError(
            f"the tables hold no key frame that is to be {purpose}",
            where=f"{where}, {frames.root / frames.version}",
            got=", ".join(unknown[:5]),
            expected="tokens of sample.json",
            cure=cure,
        )


def _all_there(
    frames: Frames, rows: Int[np.ndarray, "n"], channels: Collection[str], there: Callable[[Path], bool]
) -> Bool[np.ndarray, "n"]:
    columns, found = frames.tables.columns, np.ones(len(rows), dtype=bool)
    for channel in channels:
        files = _files(frames, rows, channel)
        names = columns.file_name[files].tolist()
        of_channel = [there(frames.root / name.decode()) for name in names]
        found &= np.array(of_channel, dtype=bool) & (files != NO_ROW)
    return found


def _sweeps_there(
    frames: Frames, rows: Int[np.ndarray, "n"], past_sweeps: int, there: Callable[[Path], bool]
) -> Bool[np.ndarray, "n"]:
    columns, found = frames.tables.columns, np.ones(len(rows), dtype=bool)
    files = _files(frames, rows, frames.lidar)
    for _ in range(past_sweeps):
        files = np.where(files == NO_ROW, NO_ROW, columns.file_previous[files])
        for i in np.flatnonzero(files != NO_ROW).tolist():
            found[i] &= there(frames.root / columns.file_name[files[i]].decode())
    return found


class _Folders:
    """Which files there are; a folder is listed once, which takes far less than asking for each of its files."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __call__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = frozenset(each.name for each in folder.iterdir()) if folder.is_dir() else frozenset()
        return path.name in self._names[folder]


def _files(frames: Frames, rows: Int[np.ndarray, "n"], channel: str) -> Int[np.ndarray, "n"]:
    """The row of each key frame's file, NO_ROW where there is none."""
    channels = frames.tables.names.channels
    if channel not in channels:
        return np.full(len(rows), NO_ROW)
    return frames.tables.columns.sample_files[rows, channels.index(channel)]
