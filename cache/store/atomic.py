"""Atomic writes of files, and leases that end with their process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import StoreBusyError, StoreError


class Leases:
    """The right to write shards of a store: POSIX record locks on single bytes of one file, byte s for shard s.

    The kernel drops them with the process: no clock, no stale lock. They hold between processes, not between threads.
    """

    _ROOT = 2**40
    """The byte of the root document."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def take(self, shards: range) -> None:
        """Hold the leases of some shards until closed; StoreBusyError where another process holds one of them."""
        if not shards:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
        except (BlockingIOError, PermissionError):
            raise StoreBusyError(
                "another process is writing there",
                where=self._path.parent.parent,
                got=f"a request for shards {shards.start} .. {shards.stop - 1}",
                cure="Wait for it to finish, or stop it and run this again to resume",
            ) from None

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
