"""A folder of limited size that threads and processes share."""

import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache.errors import ConfigError
from cache.store.bounded_folder import BoundedFolder

STORE = "0" * 32


def name(shard: int) -> str:
    return f"{STORE}/features/head/c.{shard}.0.0"


def hundred(value: int) -> Callable[[int], None]:
    return lambda file: os.pwrite(file, bytes([value]) * 100, 0) and None


def read(folder: BoundedFolder, shard: int, wait: bool = True) -> bytes | None:
    file = folder.open(name(shard), 100, hundred(shard), wait)
    if file is None:
        return None
    try:
        return os.pread(file, 200, 0)
    finally:
        os.close(file)


def held(folder: BoundedFolder) -> set[str]:
    return {path.name for path in folder.path.rglob("c.*")}


def test_the_least_recently_used_file_makes_room(tmp_path: Path) -> None:
    folder = BoundedFolder(path=tmp_path, limit=300)
    for shard in (0, 1, 2, 0):
        assert read(folder, shard) == bytes([shard]) * 100
        time.sleep(0.01)
    assert read(folder, 3) == bytes([3]) * 100
    assert held(folder) == {"c.0.0.0", "c.2.0.0", "c.3.0.0"}


def test_files_of_others_and_small_files_stay(tmp_path: Path) -> None:
    folder = BoundedFolder(path=tmp_path, limit=300)
    for other in ("notes.txt", f"{STORE}/token/c.0.0", f"{STORE}/manifest/0.json", "work/features/head/c.0.0.0"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes(bytes(50))
    for shard in range(4):
        read(folder, shard)
    assert held(folder) == {"c.3.0.0", "c.2.0.0", "c.0.0", "c.0.0.0"}  # 100 of 300 bytes are small files
    assert (tmp_path / "notes.txt").exists()


def test_a_limit_below_one_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"too small for a shard .*got a limit of 0\.000 GB.*Raise limit_gb"):
        read(BoundedFolder(path=tmp_path, limit=99), 0)
    assert not held(BoundedFolder(path=tmp_path, limit=99))


def test_a_file_is_fetched_by_one_of_many_threads(tmp_path: Path) -> None:
    folder, fetched = BoundedFolder(path=tmp_path, limit=None), []

    def fetch(file: int) -> None:
        fetched.append(1)
        time.sleep(0.05)
        hundred(7)(file)

    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: folder.open(name(0), 100, fetch), range(8)))
    assert fetched == [1]
    for file in files:
        assert file is not None
        assert os.pread(file, 100, 0) == bytes([7]) * 100
        os.close(file)


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    folder = BoundedFolder(path=tmp_path, limit=100)

    def fail(file: int) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        folder.open(name(0), 100, fail)
    assert not held(folder)
    assert read(folder, 1) == bytes([1]) * 100


def test_unfinished_files_are_counted_while_their_process_lives(tmp_path: Path) -> None:
    folder = BoundedFolder(path=tmp_path, limit=250)
    left = tmp_path / f"{name(0)}.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(200))
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a process that is fetching
        assert read(folder, 1, wait=False) is None
        assert read(folder, 0, wait=False) is None
    assert read(folder, 1, wait=False) == bytes([1]) * 100  # it has ended
    assert held(folder) == {"c.1.0.0"}
