"""Files of a store at a URL: read and written through fsspec, with patience, by their keys.

Nothing is listed: a store names all of its files. A file system is made anew in each process, since fsspec's event loop
does not survive a fork.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from cache.errors import ConfigError, CorruptStoreError, OfflineDistillError, StoreError
from cache.store.format import REPAIR
from cache.store.whole_files import Check, most_bytes

Result = TypeVar("Result")

WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Between attempts."""

BLOCK = 2**24
"""Bytes of one request."""

_file_systems: dict[tuple[int, str], tuple[Any, str]] = {}


def local_path(path: str | Path) -> Path | None:
    """The path of a local store; None for a URL of something else."""
    text = str(path).removeprefix("file://")
    return None if "://" in text else Path(text)


def patiently(work: Callable[[], Result], where: str) -> Result:
    """Do something with files at a URL, again where it fails: servers refuse, connections are cut, bytes change.

    Raises:
        CorruptStoreError: a file is missing, or its bytes were wrong each time.
        ConfigError: fsspec knows no such URL, or lacks its library.
        StoreError: access is denied, or the last attempt failed.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return work()
        except Exception as error:  # fsspec's file systems raise errors of their libraries' own classes
            if wait_s is None or not _may_pass(error):
                raise _ours(error, where) from error
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A store at a URL; all methods raise as `patiently` does."""

    url: str

    def place(self, key: str) -> str:
        """The URL of a file."""
        return f"{self.url.rstrip('/')}/{key}"

    def find(self, key: str, check: Check = bytes) -> bytes | None:
        """The bytes of a small file; None where there is none.

        Args:
            check: raises CorruptStoreError where they are not those expected; they are then read again.
        """
        return patiently(lambda: self._find(key, check), self.place(key))

    def read(self, key: str, check: Check = bytes) -> bytes:
        """The bytes of a small file, as `find` finds them."""
        data = self.find(key, check)
        if data is None:
            raise _missing(self.place(key))
        return data

    def fetch(self, key: str, size: int, file: int, check: Callable[[int], None]) -> None:
        """Write a file's bytes to a descriptor, and check them there.

        Args:
            size: of the file.
            check: of the descriptor, as in `find`.
        """
        where = self.place(key)

        def block(key: str, start: int, end: int) -> bytes:
            return patiently(lambda: self._block(key, start, end), where)

        patiently(lambda: _fetch(key, size, file, block, check), where)

    def write(self, key: str, data: bytes) -> None:
        """Write a small file, and read it back."""

        def write() -> None:
            system, path = self._at(key)
            _make_folder(system, path)
            system.pipe_file(path, data)
            if self._find(key) != data:
                raise CorruptStoreError("a file arrived with other bytes", where=self.place(key))

        patiently(write, self.place(key))

    def receive(self, key: str, fill: Callable[[int], None], check: Callable[[int], None]) -> None:
        """Write a file, and check it after reading it back.

        Args:
            fill: writes its bytes to a descriptor.
            check: as in `fetch`.
        """

        def send() -> None:
            system, path = self._at(key)
            _make_folder(system, path)
            with system.open(path, "wb") as out:
                for start in range(0, size, BLOCK):
                    out.write(os.pread(file.fileno(), BLOCK, start))
            with TemporaryFile() as back:
                _fetch(key, size, back.fileno(), self._block, check)

        with TemporaryFile() as file:
            fill(file.fileno())
            size = os.fstat(file.fileno()).st_size
            patiently(send, self.place(key))

    def _find(self, key: str, check: Check = bytes) -> bytes | None:
        system, path = self._at(key)
        try:
            data = system.cat_file(path, start=0, end=most_bytes(key) + 1)
        except FileNotFoundError:
            return None
        if len(data) > most_bytes(key):
            expected = f"at most {most_bytes(key)} bytes"
            raise StoreError("a file of the store is too large", where=self.place(key), expected=expected)
        check(data)
        return data

    def _block(self, key: str, start: int, end: int) -> bytes:
        system, path = self._at(key)
        data = system.cat_file(path, start=start, end=end)
        if len(data) != end - start:
            got = f"{len(data)} bytes at {start}"
            raise CorruptStoreError("a file is cut short", where=self.place(key), got=got, expected=end - start)
        return data

    def _at(self, key: str) -> tuple[Any, str]:
        """The file system of this process, and the path of a file in it."""
        found = _file_systems.get((os.getpid(), self.url))
        if found is None:
            from fsspec.core import url_to_fs

            found = _file_systems[os.getpid(), self.url] = url_to_fs(self.url.rstrip("/"))
        return found[0], f"{found[1]}/{key}"


def _fetch(
    key: str, size: int, file: int, block: Callable[[str, int, int], bytes], check: Callable[[int], None]
) -> None:
    os.ftruncate(file, size)
    for start in range(0, size, BLOCK):
        os.pwrite(file, block(key, start, min(start + BLOCK, size)), start)
    check(file)


def _make_folder(system: Any, path: str) -> None:
    """Make the folder of a file, but not in object stores, which have none: s3fs would create a missing bucket."""
    if not system.async_impl:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, OfflineDistillError):
        return isinstance(error, CorruptStoreError)
    return not isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError | NotImplementedError)


def _ours(error: Exception, where: str) -> OfflineDistillError:
    if isinstance(error, OfflineDistillError):
        return error
    got = f"{type(error).__name__}: {error}".partition("\n")[0]
    if isinstance(error, FileNotFoundError):
        return _missing(where)
    if isinstance(error, ImportError | ValueError | NotImplementedError):
        cure = "Install the library that it names (pip install s3fs, gcsfs, huggingface_hub), or correct the URL"
        return ConfigError("a URL cannot be read or written", where=where, got=got, cure=cure)
    if isinstance(error, PermissionError):
        cure = "Give credentials, such as AWS_PROFILE or FSSPEC_S3_KEY and FSSPEC_S3_SECRET"
        return StoreError("access to the store is denied", where=where, got=got, cure=cure)
    cure = "Check the network and the endpoint, then run this again"
    attempts = len(WAITS_S) + 1
    return StoreError(f"a store at a URL failed {attempts} times", where=where, got=got, cure=cure)


def _missing(where: str) -> CorruptStoreError:
    return CorruptStoreError("a file of the store is missing", where=where, cure=REPAIR)
