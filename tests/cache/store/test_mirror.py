"""Stores at a URL, read through a bounded local folder."""

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections import deque
from pathlib import Path

import pytest
import torch

from cache.errors import ConfigError, CorruptStoreError, StoreError, UnsealedError
from cache.store.copy import copy_store
from cache.store.reader import TeacherCache
from tests.factories.object_store import Fault, ObjectStore
from tests.factories.readers import sum_heatmaps
from tests.factories.stores import fill, make_spec, make_store, make_tokens, open_writer

URL = "s3://bucket/mirrored"
TOKENS = make_tokens(6)
FILES = 12
"""Of shards: three, of codes, scales, heatmap and canvas mask."""


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples in shards of two, with the layer `head` alone."""
    layers = make_spec(TOKENS).layers[:1]
    return make_store(tmp_path_factory.mktemp("small") / "teacher.zarr", count=6, size=2, layers=layers, head_maps={})


@pytest.fixture
def remote(bucket: ObjectStore, small_store: Path) -> ObjectStore:
    """The server with the store, which is copied once."""
    copy_store(small_store, URL)
    bucket.heal()
    return bucket


def require_equal(cache: TeacherCache, local: TeacherCache) -> None:
    for token in TOKENS:
        found, expected = cache[token], local[token]
        assert torch.equal(found.heatmap, expected.heatmap)
        for name, features in expected.features.items():
            assert torch.equal(found.features[name].values, features.values)
            assert torch.equal(found.features[name].scale, features.scale)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_samples_are_those_of_the_local_store_within_the_limit(
    remote: ObjectStore, small_store: Path, tmp_path: Path
) -> None:
    whole, local = TeacherCache(URL, local_cache=tmp_path / "whole"), TeacherCache(small_store)
    require_equal(whole, local)
    limit = size_of(tmp_path / "whole") - 1
    cache = TeacherCache(URL, local_cache=tmp_path / "cache", limit_gb=limit / 1e9)
    require_equal(cache, local)
    assert size_of(tmp_path / "cache") <= limit
    assert cache.head_weights().keys() == local.head_weights().keys()
    assert cache.url == URL
    assert cache.path.parent == tmp_path / "cache"
    assert URL in repr(cache)


def test_faults_of_the_server_change_no_sample(remote: ObjectStore, small_store: Path, tmp_path: Path) -> None:
    faults = deque[Fault](["500", "cut", "wrong", "slow"])
    for request in ("zarr.json", "token/c", "manifest/0.json", "manifest/1.json", "heatmap/c.0", "features/head/c.0"):
        remote.fail(f"GET .*{request}", *list(faults)[:2])
        faults.rotate()
    require_equal(TeacherCache(URL, local_cache=tmp_path), TeacherCache(small_store))


def test_processes_share_the_folder_and_fetch_each_file_once(
    remote: ObjectStore, small_store: Path, tmp_path: Path
) -> None:
    cache, context = TeacherCache(URL, local_cache=tmp_path), multiprocessing.get_context("fork")
    cache[TOKENS[0]]  # fsspec's event loop runs in this process, and does not in the others
    results = context.Queue()
    orders = [TOKENS, TOKENS[::-1], TOKENS[3:] + TOKENS[:3]]
    processes = [context.Process(target=sum_heatmaps, args=(cache, order, results)) for order in orders]
    for process in processes:
        process.start()
    found = [results.get(timeout=200) for _ in processes]
    expected = [int(TeacherCache(small_store)[token].heatmap.sum()) for token in TOKENS]
    assert all(sorted(sums) == sorted(expected) for sums in found)
    files = [request for request in remote.requests if "/c." in request and "GET" in request]
    assert len(files) == len(set(files))
    for process in processes:
        process.join()


def test_shards_fetched_ahead_are_there_when_they_are_read(
    remote: ObjectStore, small_store: Path, tmp_path: Path
) -> None:
    cache = TeacherCache(URL, local_cache=tmp_path)
    cache.fetch_ahead(TOKENS, layers=["head"])
    cache.fetch_ahead(TOKENS, layers=["head"])
    end = time.monotonic() + 200
    while remote.count(r"GET .*(features|heatmap|canvas_mask).*/c\.") < FILES or list(tmp_path.rglob("*.partial")):
        assert time.monotonic() < end
        time.sleep(0.01)
    requests = len(remote.requests)
    batch = cache.read(TOKENS, layers=["head"])
    assert torch.equal(batch.heatmap, TeacherCache(small_store).read(TOKENS).heatmap)
    assert len(remote.requests) == requests == remote.count(".")
    TeacherCache(small_store).fetch_ahead(TOKENS)  # there is nothing to be fetched


def test_damaged_files_in_the_folder_are_fetched_again(remote: ObjectStore, small_store: Path, tmp_path: Path) -> None:
    local, cache = TeacherCache(small_store), TeacherCache(URL, local_cache=tmp_path)
    require_equal(cache, local)
    for path in [path for path in cache.path.rglob("*") if path.is_file()]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    require_equal(cache, local)
    for path in cache.path.rglob("c.1.*"):
        path.write_bytes(path.read_bytes()[:-30])
    (cache.path / "manifest" / "2.json").unlink()
    require_equal(TeacherCache(URL, local_cache=tmp_path), local)


def read_all(cache: TeacherCache) -> None:
    cache.read(TOKENS)


def test_what_a_killed_process_left_is_not_trusted(remote: ObjectStore, small_store: Path, tmp_path: Path) -> None:
    remote.fail("GET .*features/head/c.1", "stall")
    cache = TeacherCache(URL, local_cache=tmp_path, limit_gb=1)
    process = multiprocessing.get_context("fork").Process(target=read_all, args=(cache,))
    process.start()
    partial = cache.path / "features/head/c.1.0.0.0.0.partial"
    end = time.monotonic() + 200
    while not (partial.exists() and partial.stat().st_size):  # room is kept for it from the start
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    require_equal(TeacherCache(URL, local_cache=tmp_path, limit_gb=1), TeacherCache(small_store))
    assert not list(tmp_path.rglob("*.partial"))


def test_damage_at_the_url_is_reported_with_the_url(bucket: ObjectStore, small_store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_store, broken)
    copy_store(broken, "memory://broken")
    from fsspec import filesystem

    memory, path = filesystem("memory"), "/broken/features/head/c.1.0.0.0.0"
    data = bytearray(memory.cat_file(path))
    data[10] ^= 1
    memory.pipe_file(path, bytes(data))
    cache = TeacherCache("memory://broken", local_cache=tmp_path / "cache")
    with pytest.raises(CorruptStoreError, match=r"checksum \(memory://broken/features/head/c\.1\.0\.0\.0\.0\)"):
        cache.read(TOKENS)


def test_a_store_that_was_replaced_has_another_folder(bucket: ObjectStore, small_store: Path, tmp_path: Path) -> None:
    copy_store(small_store, "memory://replaced")
    first = TeacherCache("memory://replaced", local_cache=tmp_path / "cache")
    first.read(TOKENS)
    other = make_store(tmp_path / "other", count=3)
    from fsspec import filesystem

    filesystem("memory").rm("/replaced", recursive=True)
    copy_store(other, "memory://replaced")
    second = TeacherCache("memory://replaced", local_cache=tmp_path / "cache")
    assert len(second) == 3
    assert second.path != first.path


def test_a_cache_at_a_url_is_pickled_as_its_url(remote: ObjectStore, tmp_path: Path) -> None:
    cache = TeacherCache(URL, local_cache=tmp_path, limit_gb=1)
    again = pickle.loads(pickle.dumps(cache))
    assert again.url == URL
    assert again.path == cache.path
    assert torch.equal(again[TOKENS[4]].heatmap, cache[TOKENS[4]].heatmap)


def test_refusals(remote: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"read through a local folder \(s3://bucket/mirrored\).*local_cache"):
        TeacherCache(URL)
    with pytest.raises(ConfigError, match=r"no size \(limit_gb\); got 0"):
        TeacherCache(URL, local_cache=tmp_path, limit_gb=0)
    with pytest.raises(ConfigError, match="too small for a shard"):
        TeacherCache(URL, local_cache=tmp_path, limit_gb=1e-6).read(TOKENS)
    with pytest.raises(StoreError, match=r"there is no store here \(s3://bucket/none\)"):
        TeacherCache("s3://bucket/none", local_cache=tmp_path)
    with open_writer(tmp_path / "partial") as writer:
        fill(writer, [0])
    from fsspec import filesystem

    filesystem("memory").pipe_file("/unsealed/zarr.json", (tmp_path / "partial" / "zarr.json").read_bytes())
    with pytest.raises(UnsealedError, match=r"not complete \(memory://unsealed\)"):
        TeacherCache("memory://unsealed", local_cache=tmp_path)
