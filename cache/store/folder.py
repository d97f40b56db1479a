"""StoreFolder: a store's folder as its writer holds it, by descriptors.

Whoever removes, moves or replaces the folder takes it from under its name; a writer that was stopped meanwhile goes on
in what was removed, and never in what is there now.
"""

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cache.store.files import LARGEST_FILE

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class StoreFolder:
    """Files of a store by their keys, "features/head/zarr.json"; folders are opened once and kept open.

    Args:
        path: An existing folder; it may be a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptors = {"": os.open(path, _FOLDER)}

    def close(self) -> None:
        """Close all folders."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def folder(self, name: str) -> int:
        """The descriptor of a folder, "" for the store itself; OSError where it is missing or a link."""
        with self._lock:
            return self._folder(name)

    def make(self, name: str) -> int:
        """The descriptor of a folder, made where it is missing; what has its place is set aside."""
        parent, _, last = name.rpartition("/")
        if name and name not in self._descriptors:
            above = self.make(parent)
            self._set_aside(last, above, stat.S_ISDIR)
            with suppress(FileExistsError):
                os.mkdir(last, 0o777, dir_fd=above)
                os.fsync(above)
        return self.folder(name)

    def holds_its_path(self) -> bool:
        """Whether the store's path still leads to this folder."""
        try:
            there = self.path.stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.folder("")))

    def open(self, key: str, flags: int) -> int:
        """Open a file, never through a link."""
        folder, name = self._place(key)
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=folder)

    def create(self, key: str) -> BinaryIO:
        """A new file, or an emptied one, to be written."""
        return os.fdopen(self.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")

    def read(self, key: str) -> bytes | None:
        """The bytes of a regular file; None where there is none, or something else."""
        status = self.status(key)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        with os.fdopen(self.open(key, os.O_RDONLY), "rb") as file:
            return file.read(LARGEST_FILE)

    def status(self, key: str) -> os.stat_result | None:
        """What is there, not following a link; None where there is nothing."""
        try:
            folder, name = self._place(key)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self, name: str) -> list[str]:
        """The names of the regular files in a folder."""
        with os.scandir(self.folder(name)) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]

    def rename(self, source: str, target: str) -> None:
        """Replace a file of the same folder; a folder, link or device in its place is set aside."""
        folder, name = self._place(target)
        self._set_aside(name, folder, stat.S_ISREG)
        os.rename(source.rpartition("/")[2], name, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, key: str) -> None:
        """Remove a file if it is there."""
        folder, name = self._place(key)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)

    def remove(self, key: str) -> None:
        """Remove a file if it is there; what is no file is set aside."""
        folder, name = self._place(key)
        self._set_aside(name, folder, stat.S_ISREG)
        self.unlink(key)

    def fsync(self, name: str) -> None:
        """Make renames in a folder durable."""
        os.fsync(self.folder(name))

    def write_durably(self, key: str, data: bytes) -> None:
        """Replace a file atomically: after a crash there is either the old one or the new one."""
        partial = partial_key(key)
        self.make(key.rpartition("/")[0])
        try:
            with self.create(partial) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.rename(partial, key)
        except BaseException:
            with suppress(OSError):
                self.unlink(partial)
            raise
        self.fsync(key.rpartition("/")[0])

    def _folder(self, name: str) -> int:
        if name not in self._descriptors:
            parent, _, last = name.rpartition("/")
            self._descriptors[name] = os.open(last, _FOLDER | os.O_NOFOLLOW, dir_fd=self._folder(parent))
        return self._descriptors[name]

    def _place(self, key: str) -> tuple[int, str]:
        folder, _, name = key.rpartition("/")
        return self.folder(folder), name

    def _set_aside(self, name: str, folder: int, wanted: Callable[[int], bool]) -> None:
        """Rename what has the place of a file or folder and is none; nobody's data is removed."""
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if wanted(mode):
            return
        number = 0
        while f"{name}.aside{number}" in os.listdir(folder):
            number += 1
        os.rename(name, f"{name}.aside{number}", src_dir_fd=folder, dst_dir_fd=folder)


def partial_key(key: str) -> str:
    """Where this process writes a file before it gets its name."""
    return f"{key}.{os.getpid()}.partial"
