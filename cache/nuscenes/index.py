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
from pathlib import Path
from typing import Any

import msgspec

from cache.errors import DataError, OfflineDistillWarning
from cache.nuscenes.columns import Columns, Names
from cache.nuscenes.compile import TABLES, compile_tables
from cache.nuscenes.index_files import FORMAT, META, IndexFiles, TableIndex, read_index, write_index
from cache.nuscenes.tables import UNPACK
from cache.terminal.console import progress as console_progress

EDGE_BYTES = 1 << 16
SHOWN_BYTES = 50_000_000
"""Tables of fewer bytes are read without a progress bar."""

Progress = Callable[[int, int], None]
"""Called with (done, total) megabytes of the tables."""


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
            raise DataError(
                "the tables changed while they were read", where=folder, cure="Run it again once nothing writes there"
            )
        if problem is None:
            _remove_stale(path, str(folder))
            problem = _try(lambda: write_index(IndexFiles(columns, names, str(folder), identity), path))
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
                cure=UNPACK,
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


def _remove_stale(path: Path, tables: str) -> None:
    """Remove what killed processes left, and the indexes of the same tables as they were before."""
    for other in path.parent.glob("*.tmp"):
        if other.name.startswith(path.name):
            shutil.rmtree(other, ignore_errors=True)
    for other in path.parent.glob(f"*/{META}"):
        if other.parent != path and _tables_of(other) == tables:
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
    """The index, None where there is none, with a warning where it is damaged."""
    if not path.is_dir():
        return None
    found = read_index(path)
    if isinstance(found, tuple):
        return found[0]
    warnings.warn(
        f"the index {path} is damaged ({', '.join(found)}) and is made again", OfflineDistillWarning, stacklevel=3
    )
    return None


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
