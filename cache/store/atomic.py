"""Atomic writes of files, and leases that end with their process."""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import StoreBusyError, StoreError
from cache.store.folder import StoreFolder
from cache.store.layout import LOCK


class Leases:
    """The right to write shards of a store: POSIX record locks on single bytes of one file, byte s for shard s.

    The kernel drops them with the process: no clock, no stale lock. They hold between processes, not between threads.
    """

    _ROOT = 2**40
    """The byte of the root document."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        status = folder.status(LOCK)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise StoreError(
                "the place of the writers' lock is taken by something else",
                where=folder.path / LOCK,
                expected="an empty file, or nothing",
                cure="Remove it",
            )
        self._file = folder.open(LOCK, os.O_RDWR | os.O_CREAT)

    def take(self, shards: range) -> None:
        """Hold the leases of some shards until closed; StoreBusyError where another process holds one of them."""
        if not shards:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
        except (BlockingIOError, PermissionError):
            raise StoreBusyError(
                "another process is writing there",
                where=self._folder.path,
                got=f"a request for shards {shards.start} .. {shards.stop - 1}",
                cure="Wait for it to finish, or stop it and run this again to resume",
            ) from None

    def require_held(self) -> None:
        """Raise StoreError where the store was removed, moved or replaced since its lock was opened."""
        there = self._folder.status(LOCK)
        same = there is not None and os.path.samestat(there, os.fstat(self._file))
        if not (same and self._folder.holds_its_path()):
            raise StoreError(
                "the store was removed or replaced while this process was writing to it",
                where=self._folder.path,
                got="another folder or lock, or none",
                expected="the store that this process opened",
                cure="Nothing was written to what is there now; run this again if you want to go on there",
            )

    @contextmanager
    def root(self) -> Iterator[None]:
        """Wait for the right to write the documents, which other processes hold only for moments."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._ROOT)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._ROOT)

    def close(self) -> None:
        """Release all leases."""
        os.close(self._file)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically: after a crash there is either the old one or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove_partial(path: Path) -> None:
    """Remove what killed processes left of a file that `write_durably` was to replace."""
    pattern = re.compile(re.escape(path.name) + r"\.\d+\.partial")
    for left in path.parent.glob("*.partial"):
        if pattern.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


def fsync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the store and a cure."""
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: "Free some space and run this again to resume",
            errno.EDQUOT: "Free some of your quota and run this again to resume",
            errno.EFBIG: "Use a file system that takes larger files, or fewer samples per shard",
            errno.ENOLCK: "Dump to a file system with POSIX locks",
        }
        cure = cures.get(error.errno or 0, "Check the folder and its permissions")
        raise StoreError(
            "the store cannot be written", where=error.filename or path, got=error.strerror, cure=cure
        ) from error
