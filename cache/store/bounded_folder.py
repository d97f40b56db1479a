"""BoundedFolder: files that are fetched when they are needed, in a folder of limited size that processes share."""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cache.errors import ConfigError
from cache.store.files import open_file

POLL_S = 0.02
"""Time between two looks at a file that another thread or process is fetching."""

STORE = re.compile(r"[0-9a-f]{32}")
"""A folder of this one; nothing else in it is counted or removed."""

SHARD = re.compile(r"(?!token|view_matrix).+/c\.\d+(\.0)+")
"""What is removed to make room."""

_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class BoundedFolder:
    """Files by name, `<store>/<key>`; those that were not used for the longest time make room for others.

    Whoever fetches a file holds a lock on it (`flock`), which ends with the process; what is then left of the file is
    removed, or fetched again. An open file stays readable after its removal.

    limit: bytes; None for no limit.
    """

    path: Path
    limit: int | None

    def open(self, name: str, size: int, fetch: Callable[[int], None], wait: bool = True) -> int | None:
        """The descriptor of a file, which is fetched unless it is there; each file by one thread or process.

        Args:
            fetch: writes the bytes to a descriptor.
            wait: for others that are fetching it, or have taken the room; otherwise None is returned.

        Raises:
            ConfigError: the limit is too small for the file.
            OSError: the folder cannot be written.
        """
        path = self.path / name
        while True:
            with suppress(FileNotFoundError):
                return _used(path)
            file = self._claim(path, size)
            if file is not None:
                self._fetch(path, file, fetch)
                return file
            if not wait:
                return None
            time.sleep(POLL_S)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def _claim(self, path: Path, size: int) -> int | None:
        """A locked file that takes the room of one to be fetched; None where that is not to be done, or not now."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        with self.lock():
            if path.exists():
                return None
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            if not _locked(file):
                os.close(file)
                return None
            try:
                os.ftruncate(file, 0)
                room = self._make_room(size, partial)
                if room:
                    os.ftruncate(file, size)
                    return file
            except BaseException:
                _give_up(file, partial)
                raise
            _give_up(file, partial)
            return None

    def _fetch(self, path: Path, file: int, fetch: Callable[[int], None]) -> None:
        try:
            fetch(file)
            with self.lock():
                _partial(path).rename(path)
                fcntl.flock(file, fcntl.LOCK_UN)  # not by closing: a forked process may hold it as well
        except BaseException:
            with self.lock():
                _give_up(file, _partial(path))
            raise

    def _make_room(self, size: int, own: Path) -> bool:
        """Remove files until there is room; false where others' unfinished ones are in the way."""
        if self.limit is None:
            return True
        shards, fixed, unfinished = [], 0, 0
        for file, status in self._files():
            key = str(file.relative_to(self.path)).partition("/")[2]
            if not SHARD.fullmatch(key.removesuffix(_PARTIAL)):
                fixed += status.st_size
            elif not key.endswith(_PARTIAL):
                shards.append((status.st_mtime_ns, status.st_size, file))
            elif file != own and not _removed_if_left(file):
                unfinished += status.st_size
        if fixed + size > self.limit:
            raise ConfigError(
                "the local cache is too small for a shard",
                where=self.path,
                got=f"a limit of {self.limit / 1e9:.3f} GB",
                expected=f"at least {(fixed + size) / 1e9:.3f} GB, better the shards of three windows",
                cure="Raise limit_gb (data.local_cache_gb of a training)",
            )
        over = fixed + unfinished + size + sum(stored for _, stored, _ in shards) - self.limit
        for _, stored, file in sorted(shards):
            if over <= 0:
                break
            file.unlink(missing_ok=True)
            over -= stored
        return over <= 0

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for store in self.path.iterdir():
            if STORE.fullmatch(store.name):
                for folder, _, names in os.walk(store):
                    for file in (Path(folder, name) for name in names):
                        with suppress(FileNotFoundError):
                            yield file, file.lstat()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to give files their names and to remove them."""
        file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _used(path: Path) -> int:
    file = open_file(path)
    os.utime(file)
    return file


def _locked(file: int) -> bool:
    """Take the lock of a file that is being fetched; false where another holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _give_up(file: int, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _removed_if_left(partial: Path) -> bool:
    """Remove a file whose process was killed; false where one is fetching it."""
    try:
        file = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    if not _locked(file):
        os.close(file)
        return False
    _give_up(file, partial)
    return True
