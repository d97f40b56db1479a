"""The index of a version's tables: its columns as memory-mapped files that all processes share.

Made from the JSON tables on first use, by one process while others wait, and kept in the user's cache directory under
the tables' identity; an index that is damaged, or of tables that have changed, is made again.
"""

import fcntl
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import numpy as np

from cache.errors import DataError, OfflineDistillWarning
from cache.nuscenes.columns import TABLES, Columns, Names, compile_tables
from cache.terminal.console import progress as console_progress

FORMAT = 1
"""Of the columns; another number makes every index again."""

META = "index.json"
EDGE_BYTES = 1 << 16
CHECKED_BYTES = 4 << 20
SHOWN_BYTES = 50_000_000
"""Tables of fewer bytes are read without a progress bar."""

Progress = Callable[[int, int], None]
"""Called with (done, total) megabytes of the tables."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What index.json holds: of which tables the columns are, and their sizes and CRC-32C."""

    format: int
    tables: str
    identity: str
    names: Names
    files: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TableIndex:
    """A version's columns; pickled, it is a path that is opened where it arrives.

    path: its folder; None where it is kept in memory only.
    """

    columns: Columns
    names: Names
    path: Path | None = None

    def __reduce__(self) -> tuple:
        if self.path is None:
            return _in_memory, (self.columns, self.names)
        return _reopened, (self.path,)

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(getattr(self.columns, field.name).nbytes for field in fields(Columns))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The key frames', in the tables' order."""
        return tuple(token.decode() for token in self.columns.sample_token.tolist())

    def row(self, token: str) -> int | None:
        """The key frame's row, None where there is none."""
        (row,) = self.rows([token])
        return None if row < 0 else int(row)

    def rows(self, tokens: "tuple[str, ...] | list[str]") -> np.ndarray:
        """Each key frame's row, -1 where there is none."""
        stored, order = self.columns.sample_token, self.columns.sample_order
        wanted = np.array([token.encode() for token in tokens], dtype=np.bytes_)
        if not len(stored) or not len(wanted):
            return np.full(len(wanted), -1)
        found = order[np.minimum(np.searchsorted(stored, wanted, sorter=order), len(stored) - 1)]
        return np.where(stored[found] == wanted, found, -1)


def open_index(root: Path, version: str, progress: Progress | None = None) -> TableIndex:
    """The index of a version's tables, made first where there is none.

    Args:
        progress: called while it is made; without it, a bar on stderr where the tables are large.

    Raises:
        DataError: the tables are missing or broken; see `compile_tables`.
    """
    folder = tables_folder(root, version)
    identity = tables_identity(folder)
    path = index_folder() / identity
    if (index := _opened(path)) is not None:
        return index
    with ExitStack() as stack:
        problem = _try(lambda: stack.enter_context(_locked(path.with_suffix(".lock"))))
        if problem is None and (index := _opened(path)) is not None:
            return index
        columns, names = _compiled(folder, progress)
        if tables_identity(folder) != identity:
            raise DataError("the tables changed while they were read", where=folder, cure="Start again")
        meta = Meta(format=FORMAT, tables=str(folder), identity=identity, names=names, files={})
        problem = problem or _try(lambda: _save(columns, meta, path))
        if problem is None and (index := _opened(path)) is not None:
            return index
    warnings.warn(
        f"the index of {folder} cannot be kept in {path.parent} ({problem or 'it does not read back'}): it is in this "
        "process's memory, and will be made again by the next one; free some space, or let XDG_CACHE_HOME name a "
        "folder that can be written",
        OfflineDistillWarning,
        stacklevel=2,
    )
    return TableIndex(columns=columns, names=names)


def tables_folder(root: Path, version: str) -> Path:
    """The folder of a version's tables.

    Raises:
        DataError: there is none.
    """
    folder = Path(root) / version
    if not folder.is_dir():
        found = sorted(
            {p.parent.name for p in Path(root).glob("*/sample.json")} | {p.name for p in Path(root).glob("v1.0-*")}
        )
        raise DataError(
            "the nuScenes tables are missing",
            where=root,
            got=found or ("a folder without tables" if Path(root).is_dir() else "no such folder"),
            expected=f"{version}/",
            cure="Name the folder of samples/, sweeps/ and the tables with --data, and its version in the config",
        )
    return folder.resolve()


def tables_identity(folder: Path) -> str:
    """A hash of the tables' sizes, modification times, and first and last 64 KiB.

    Raises:
        DataError: one is missing or cannot be read.
    """
    digest = hashlib.sha256(f"{FORMAT} {folder.name}".encode())
    for name in TABLES:
        path = folder / f"{name}.json"
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                digest.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
                digest.update(file.read(EDGE_BYTES))
                file.seek(max(0, status.st_size - EDGE_BYTES))
                digest.update(file.read(EDGE_BYTES))
        except OSError as error:
            raise DataError(
                "a nuScenes table cannot be read",
                where=path,
                got=f"{type(error).__name__}: {error.strerror}",
                cure="Unpack the tables again",
            ) from None
    return digest.hexdigest()[:32]


def index_folder() -> Path:
    """Where this user's indexes are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "offline-distillbev" / "index"


def _compiled(folder: Path, progress: Progress | None) -> tuple[Columns, Names]:
    total = sum((folder / f"{name}.json").stat().st_size for name in TABLES)
    with ExitStack() as stack:
        if progress is None and total >= SHOWN_BYTES:
            progress = stack.enter_context(console_progress("MB of tables indexed"))
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done // 1_000_000, total // 1_000_000)

        return compile_tables(folder, advance)


def _save(columns: Columns, meta: Meta, path: Path) -> None:
    """Write an index beside its name, and rename it; indexes of the same tables as they were before are removed."""
    beside = path.with_suffix(".tmp")
    for leftover in (beside, path):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        beside.mkdir()
        files = {}
        for field in fields(Columns):
            file = beside / f"{field.name}.npy"
            np.save(file, getattr(columns, field.name), allow_pickle=False)
            files[field.name] = (file.stat().st_size, _crc(file))
        text = msgspec.json.encode(msgspec.structs.replace(meta, files=files))
        (beside / META).write_bytes(text + f"\n{google_crc32c.value(text)}".encode())
        beside.rename(path)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for other in path.parent.glob(f"*/{META}"):
        if other.parent != path and _tables_of(other) == meta.tables:
            shutil.rmtree(other.parent, ignore_errors=True)


class _OfTables(msgspec.Struct):
    """What index.json holds in every format."""

    tables: str


def _tables_of(meta: Path) -> str | None:
    try:
        return msgspec.json.decode(meta.read_bytes().rpartition(b"\n")[0], type=_OfTables).tables
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _opened(path: Path) -> TableIndex | None:
    """An index whose every byte is as it was written; None where there is none, with a warning where it is damaged."""
    if not path.is_dir():
        return None
    meta = _meta(path)
    damaged = [META] if meta is None else [name for name, sum_ in meta.files.items() if not _intact(path, name, sum_)]
    if meta is not None and not damaged:
        return _mapped(path, meta)
    warnings.warn(
        f"the index {path} is damaged ({', '.join(damaged)}) and is made again", OfflineDistillWarning, stacklevel=3
    )
    return None


def _intact(path: Path, name: str, size_and_crc: tuple[int, int]) -> bool:
    file = path / f"{name}.npy"
    try:
        return (file.stat().st_size, _crc(file)) == tuple(size_and_crc)
    except OSError:
        return False


def _meta(path: Path) -> Meta | None:
    try:
        text, _, crc = (path / META).read_bytes().rpartition(b"\n")
        return msgspec.json.decode(text, type=Meta) if google_crc32c.value(text) == int(crc) else None
    except (OSError, ValueError, msgspec.DecodeError):
        return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHECKED_BYTES):
            crc = google_crc32c.extend(crc, chunk)
    return crc


def _mapped(path: Path, meta: Meta) -> TableIndex:
    # As plain arrays: indexing np.memmap itself takes several times as long.
    columns = {
        field.name: np.load(path / f"{field.name}.npy", mmap_mode="r").view(np.ndarray) for field in fields(Columns)
    }
    return TableIndex(columns=Columns(**columns), names=meta.names, path=path)


def _reopened(path: Path) -> TableIndex:
    """In another process, which trusts what the first one has checked."""
    meta = _meta(path)
    if meta is None:
        raise DataError(
            "the index of the tables is gone", where=path, got="no such folder, or a damaged one", cure="Start again"
        )
    return _mapped(path, meta)


def _in_memory(columns: Columns, names: Names) -> TableIndex:
    return TableIndex(columns=columns, names=names)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try(action: Callable[[], Any]) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None
