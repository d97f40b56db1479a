"""Where the files of a store are copied from and to: local folders, beside those at a URL."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from cache.errors import CorruptStoreError, StoreError, UnsealedError
from cache.store.atomic import Leases, store_errors
from cache.store.documents import parse_attributes
from cache.store.files import open_file, read_file, regular_size, require_no_links, unreadable
from cache.store.folder import StoreFolder
from cache.store.layout import MANIFEST, ROOT
from cache.store.remote import BLOCK, RemoteFolder, local_path
from cache.store.whole_files import Check, most_bytes


@runtime_checkable
class Source(Protocol):
    """Files of a store to be read."""

    def find(self, key: str, check: Check = bytes) -> bytes | None:
        """The bytes of a small file, checked; None where there is none."""

    def read(self, key: str, check: Check = bytes) -> bytes:
        """The bytes of a small file, checked; CorruptStoreError where there is none."""

    def fetch(self, key: str, size: int, file: int, check: Callable[[int], None]) -> None:
        """Write a file's bytes to a descriptor, and check them there."""


@runtime_checkable
class Target(Protocol):
    """Files of a store to be written."""

    def find(self, key: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Write a small file."""

    def receive(self, key: str, fill: Callable[[int], None], check: Callable[[int], None]) -> None:
        """Write a file, and check it where it arrived."""


def source_at(path: str | Path) -> Source:
    """A store to be copied."""
    local = local_path(path)
    return RemoteFolder(url=str(path)) if local is None else LocalSource(local)


def read_root(source: Source, name: str) -> bytes:
    """The root document of a sealed store.

    Raises:
        StoreError: there is no store.
        UnsealedError: it is not complete.
        CorruptStoreError, MismatchError: see `parse_attributes`.
    """
    parse = partial(parse_attributes, where=f"{name}/{ROOT}")
    data = source.find(ROOT, parse)
    if data is None:
        raise StoreError("there is no store here", where=name, cure="Name a folder or a URL that holds zarr.json")
    if not parse(data).sealed:
        cure = "Run `cli dump-teacher` or `cli copy` again to finish it"
        raise UnsealedError("the store is not complete", where=name, cure=cure)
    return data


@contextmanager
def target_at(path: str | Path, shards: range) -> Iterator[Target]:
    """A store to be written; a local one is held against other writers.

    Raises:
        StoreBusyError: another process is writing there.
    """
    local = local_path(path)
    if local is None:
        yield RemoteFolder(url=str(path))
        return
    with store_errors(local):
        local.mkdir(parents=True, exist_ok=True)
        folder = StoreFolder(local)
        try:
            folder.make(MANIFEST)
            leases = Leases(folder)
            try:
                leases.take(shards)
                yield LocalTarget(folder, leases)
            finally:
                leases.close()
        finally:
            folder.close()


class LocalSource:
    """A local store, which may come from anywhere: regular files alone are read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, key: str, check: Check = bytes) -> bytes | None:
        return self.read(key, check) if os.path.lexists(self._path / key) else None

    def read(self, key: str, check: Check = bytes) -> bytes:
        data = read_file(self._path, key, most_bytes(key))
        check(data)
        return data

    def fetch(self, key: str, size: int, file: int, check: Callable[[int], None]) -> None:
        path = self._path / key
        require_no_links(self._path, key)
        try:
            source = open_file(path)
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            if regular_size(source, path) != size:
                raise CorruptStoreError("a file has another size", where=path, expected=f"{size} bytes")
            for start in range(0, size, BLOCK):
                os.pwrite(file, os.pread(source, BLOCK, start), start)
        finally:
            os.close(source)
        check(file)


class LocalTarget:
    """A local folder, held by its descriptors; each file gets its name when it is whole and on the disk."""

    def __init__(self, folder: StoreFolder, leases: Leases) -> None:
        self._folder, self._leases = folder, leases

    def find(self, key: str) -> bytes | None:
        return self._folder.read(key)

    def write(self, key: str, data: bytes) -> None:
        self._leases.require_held()
        self._folder.write_durably(key, data)

    def receive(self, key: str, fill: Callable[[int], None], check: Callable[[int], None]) -> None:
        # Of no process: the lease keeps others out, and what a killed copy left is written over.
        partial, name = f"{key}.0.partial", key.rpartition("/")[0]
        self._folder.make(name)
        try:
            with os.fdopen(self._folder.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC), "r+b") as file:
                fill(file.fileno())
                check(file.fileno())
                os.fsync(file.fileno())
            self._leases.require_held()
            self._folder.rename(partial, key)
        except BaseException:
            with suppress(OSError):
                self._folder.unlink(partial)
            raise
        self._folder.fsync(name)
