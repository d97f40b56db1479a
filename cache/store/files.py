"""Reading of a store's files: regular files within the store, of a bounded size.

A store may come from anywhere: a pipe would block the reader, a link lead out of the store, a sparse file fill the
memory.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import UInt8

from cache.errors import CorruptStoreError
from cache.store.format import CHECKSUM_BYTES, DISTRUST, REPAIR, checksum_of

LARGEST_FILE = 2**28
"""Bytes of a document or a small array; shards are read chunk by chunk."""

LARGEST_COLUMN = 2**30
"""Bytes of a column of the frames that a store carries."""

READ_BYTES = 2**18
"""Read and checked at a time: they stay in a processor's cache."""


def read_file(store: Path, key: str, limit: int = LARGEST_FILE) -> bytes:
    """The bytes of a file of a store.

    Raises:
        CorruptStoreError: it is missing, no regular file of the store, or larger than `limit`.
    """
    with _opened(store, key, limit) as (descriptor, size), os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(size)


def read_checked(store: Path, key: str) -> UInt8[np.ndarray, "n"]:
    """The bytes of a file that ends with their crc32c, which is computed as they arrive.

    Each part is still in the processor's cache then, and numpy's memory comes in large pages: with a million tokens a
    store opens in less than half the time.

    Raises:
        CorruptStoreError: as in `read_file`, or the checksum does not match.
    """
    with _opened(store, key, LARGEST_FILE) as (descriptor, size):
        stored, crc32c, done = np.empty(size, np.uint8), 0, 0
        place = stored.data
        while done < size and (count := os.preadv(descriptor, [place[done : done + READ_BYTES]], done)):
            crc32c = google_crc32c.extend(crc32c, stored[done : min(done + count, size - CHECKSUM_BYTES)])
            done += count
    if done < max(size, CHECKSUM_BYTES) or crc32c != checksum_of(stored):
        raise CorruptStoreError("stored bytes do not match their checksum", where=store / key, cure=REPAIR)
    return stored


@contextmanager
def _opened(store: Path, key: str, limit: int) -> Iterator[tuple[int, int]]:
    """The descriptor and the size of a regular file of a store; errors as in `read_file`."""
    path = store / key
    require_no_links(store, key)
    try:
        descriptor = open_file(path)
        try:
            size = regular_size(descriptor, path)
            if size > limit:
                got, most = f"{size} bytes", f"at most {limit}"
                raise CorruptStoreError(
                    "a file of the store is too large", where=path, got=got, expected=most, cure=DISTRUST
                )
            yield descriptor, size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error


def file_size(store: Path, key: str) -> int:
    """The size of a regular file of a store; errors as in `read_file`."""
    try:
        descriptor = open_file(store / key)
        try:
            return regular_size(descriptor, store / key)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(store / key, error) from error


def open_file(path: Path) -> int:
    """Open a file for reading; a link is refused with OSError, and a pipe does not block."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def regular_size(descriptor: int, path: Path) -> int:
    """The size of an open file; CorruptStoreError unless it is a regular one."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(path)
    return status.st_size


def require_no_links(store: Path, key: str) -> None:
    """Raise CorruptStoreError if a folder between a store and one of its files is a link."""
    folder = str(store)
    for part in key.split("/")[:-1]:
        folder = f"{folder}/{part}"
        if os.path.islink(folder):  # noqa: PTH114 (many times faster than pathlib, for each shard)
            raise _not_regular(Path(folder))


def unreadable(path: Path, error: OSError) -> CorruptStoreError:
    """The error for a file of a store that cannot be read."""
    if error.errno == errno.ELOOP:
        return _not_regular(path)
    return CorruptStoreError("a file of the store cannot be read", where=path, got=error.strerror, cure=REPAIR)


def _not_regular(path: Path) -> CorruptStoreError:
    return CorruptStoreError(
        "a link, a pipe or a device where the store has a file or a folder",
        where=path,
        expected="regular files and folders within the store",
        cure="Copy the store with its links followed (cp -rL), or dump it again",
    )
