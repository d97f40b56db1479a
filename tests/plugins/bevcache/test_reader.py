"""The plug-in's reader gives what the product's gives, and finds what it finds, from threads, forks and pickles."""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bevcache.objective import adapter, decode
from bevcache.reader import Batch, BevCacheError, CorruptStoreError, Grid, NotCachedError, TeacherStore

from cache.geometry.grid import BevGrid
from cache.geometry.views import nearest_view
from cache.store.documents import sign
from cache.store.format import with_checksum
from cache.store.reader import TeacherCache
from tests.factories.stores import fill, open_writer

DATA = Path(__file__).parents[2] / "data"
STORES = ("store-v1", "store-v1-views", "store-v2")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "store-v2", tmp_path / "store"))


@pytest.mark.parametrize("name", STORES)
def test_every_value_of_the_golden_stores(name: str) -> None:
    store, cache = TeacherStore(DATA / name), TeacherCache(DATA / name)
    assert list(store.positions) == list(cache.tokens)
    for view in range(len(cache.spec.views)):
        views = [view] * len(cache)
        ours, theirs = store.read(list(cache.tokens), views=views), cache.read(cache.tokens, views=views)
        for layer, stored in theirs.features.items():
            assert torch.equal(ours[f"features/{layer}"], stored.values)
            decoded = decode(ours, layer, store.layers[layer]["codec"])
            torch.testing.assert_close(decoded, stored.decode(), rtol=1e-6, atol=0)
            assert store.layers[layer]["codec"]["kind"] == "float16" or torch.equal(
                ours[f"features/{layer}_scale"], stored.scale
            )
        for key in ("heatmap", "canvas_mask", "view_matrix"):
            assert torch.equal(ours[key], getattr(theirs, key)), key


def test_buffers_are_filled_again_and_again() -> None:
    store = TeacherStore(DATA / "store-v2")
    tokens = list(store.positions)
    buffers = store.buffers(3, ["head"])
    codes = buffers["features/head"]
    assert codes.dtype == torch.uint8
    first = store.read(tokens[:2], out=buffers)
    assert first["features/head"].data_ptr() == codes.data_ptr()
    assert len(first["features/head"]) == 2
    assert set(first) == {"features/head", "features/head_scale", "heatmap", "canvas_mask", "view_matrix"}
    store.read(tokens[2:3], out=buffers)
    assert torch.equal(codes[0], store.read(tokens[2:3])["features/head"][0])


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def test_threads_forks_and_pickles_read_the_same() -> None:
    store = TeacherStore(DATA / "store-v2")
    tokens = list(store.positions)
    expected = [TeacherStore(DATA / "store-v2").read([token]) for token in tokens]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda token: store.read([token]), tokens * 8))
    assert all(same(batch, expected[n % len(tokens)]) for n, batch in enumerate(found))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.map(store.read, [[token] for token in tokens])
    assert all(map(same, forked, expected))
    assert same(pickle.loads(pickle.dumps(store)).read(tokens[:1]), expected[0])


def test_the_nearest_view_is_the_products() -> None:
    store, cache = TeacherStore(DATA / "store-v2"), TeacherCache(DATA / "store-v2")
    rng = np.random.default_rng(0)
    for token in cache.tokens:
        stored = cache.view_matrices([token])
        for view in range(stored.shape[1]):
            near = stored[0, view].astype(float) @ np.block(
                [[np.eye(3), rng.normal(0, 0.3, (3, 1))], [np.zeros((1, 3)), 1]]
            )
            assert store.nearest_view(token, near) == nearest_view(near[None], stored)[0] == view


@pytest.mark.parametrize("axes", ["yx", "xy"])
def test_a_grid_is_the_products(axes: Any) -> None:
    grid = BevGrid(x_range_m=(-6.4, 19.2), y_range_m=(0.0, 12.8), cell_m=(0.4, 0.8), frame="ego", axes=axes)
    ours = Grid(**grid.model_dump(mode="json"))
    assert ours.shape == grid.shape
    np.testing.assert_allclose(ours.cell_matrix(), grid.cell_matrix, atol=1e-12)
    (height, width), (_, finer) = grid.shape, adapter(ours, 4, 4, "upsample", 2)
    assert finer.cell_m == grid.resized((2 * height, 2 * width)).cell_m


def test_every_flipped_bit_of_what_is_read_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    unread = ("boxes_", "depth_points", "token_order")  # and each array's zarr.json: the root's counts
    files = [path for path in copy.rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if not str(path.relative_to(copy)).startswith(unread)]
    files = [
        path for path in files if path.name.startswith("c.") or path == copy / "zarr.json" or path.suffix == ".json"
    ]
    files = [path for path in files if path.name != "zarr.json" or path.parent == copy]
    files = [path for path in files if path.parts[-2:] != ("frames", "index.json")]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(CorruptStoreError):
            read_all(copy)
        path.write_bytes(data)
    read_all(copy)


def read_all(path: Path) -> None:
    store = TeacherStore(path)
    for view in range(len(store.spec["views"])):
        store.read(list(store.positions), views=[view] * len(store.positions))


def test_whole_bytes_in_another_place_are_found(copy: Path) -> None:
    shards = [next(copy.glob(f"features/head/c.{shard}.*")) for shard in (0, 1)]
    first, second = (path.read_bytes() for path in shards)
    shards[0].write_bytes(second)
    with pytest.raises(CorruptStoreError, match="head, shard 0"):
        read_all(copy)
    shards[0].write_bytes(first)
    record = (copy / "manifest/1.json").read_bytes()
    (copy / "manifest/0.json").write_bytes(record)
    with pytest.raises(CorruptStoreError, match="another shard or another store"):
        read_all(copy)


def test_a_whole_chunk_in_another_row_is_found(copy: Path) -> None:
    """Also where shard, index and the index's checksum in the record are in order: the record has each chunk's."""
    path, record = next(copy.glob("heatmap/c.0.*")), copy / "manifest/0.json"
    document = json.loads(record.read_text())
    data = path.read_bytes()
    index = np.frombuffer(data[-16 * 6 - 4 : -4], "<u8").reshape(6, 2)  # two samples of three views
    swapped = with_checksum(index[[1, 0, *range(2, 6)]].tobytes())
    path.write_bytes(data[: -len(swapped)] + swapped)
    document["files"]["heatmap"]["index_crc32c"] = int.from_bytes(swapped[-4:], "little")
    del document["sha256"]
    record.write_bytes(sign(document))
    with pytest.raises(CorruptStoreError, match=r"not those that were committed .*heatmap, token"):
        read_all(copy)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": ["nowhere"]}, r"does not hold this token .*store-v2\); got nowhere; expected one of 5 of"),
        ({"layers": ["neck"]}, "does not hold this layer .*got neck; expected head or backbone0"),
        ({"views": [9]}, r"does not hold this view .*got 9; expected 0 \.\. 2"),
    ],
)
def test_what_was_not_dumped_raises(wrong: dict[str, Any], message: str) -> None:
    store = TeacherStore(DATA / "store-v2")
    with pytest.raises(NotCachedError, match=message):
        store.read(**{"tokens": list(store.positions)[:1], **wrong})
    with pytest.raises(KeyError):
        store.read(**{"tokens": list(store.positions)[:1], **wrong})


def test_stores_that_are_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(BevCacheError, match=r"no store here .*Point to the folder"):
        TeacherStore(tmp_path)
    with open_writer(tmp_path / "open", count=4) as writer:
        fill(writer, [])
    with pytest.raises(BevCacheError, match=r"has not finished .*resume it"):
        TeacherStore(tmp_path / "open")
    document = json.loads((copy / "zarr.json").read_text())
    document["attributes"]["format_version"] = 3
    del document["attributes"]["sha256"]
    (copy / "zarr.json").write_bytes(sign(document))
    with pytest.raises(BevCacheError, match=r"another format version .*got 3; expected 1 or 2. Update bevcache"):
        TeacherStore(copy)


def test_links_are_not_followed(copy: Path, tmp_path: Path) -> None:
    target = next(copy.glob("features/head/c.0.*"))
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStoreError, match="no regular file"):
        read_all(copy)
    target.unlink()
    with pytest.raises(CorruptStoreError, match=r"cannot be read .*c\.0\.0.*; got No such file"):
        read_all(copy)
    (tmp_path / "elsewhere").rename(target)
    (copy / "heatmap").rename(tmp_path / "heatmap")
    (copy / "heatmap").symlink_to(tmp_path / "heatmap")
    with pytest.raises(CorruptStoreError, match="no regular file"):
        read_all(copy)
