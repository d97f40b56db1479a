import multiprocessing
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cache.errors import (
    CorruptStoreError,
    MismatchError,
    NotCachedError,
    StoreError,
    UnsealedError,
)
from cache.store.batch import TeacherBatch
from cache.store.reader import TeacherCache
from tests.factories.readers import sum_heatmaps
from tests.factories.stores import fill, make_sample, make_store, make_tokens, open_writer


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


@pytest.fixture
def store(sealed_store, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(sealed_store, tmp_path / "teacher.zarr")


def damage(path, offset: int = 10) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_one_token_gives_all_that_was_written(cache):
    token = make_tokens(10)[7]
    sample, written = cache[token], make_sample(cache.spec, 7).arrays
    assert sample.token == token
    for name in ("head", "backbone0", "backbone1"):
        np.testing.assert_array_equal(sample.features[name].values.numpy(), written[f"features/{name}"])
    np.testing.assert_array_equal(sample.features["head"].scale.numpy(), written["features/head_scale"])
    assert torch.equal(sample.features["backbone1"].scale, torch.ones(1, 3))
    np.testing.assert_array_equal(sample.heatmap.numpy(), written["heatmap"])
    np.testing.assert_array_equal(np.packbits(sample.canvas_mask.numpy(), axis=-1), written["canvas_mask"])
    assert sample.canvas_mask.shape == (1, 12, 16)
    np.testing.assert_array_equal(sample.head_maps["reg"].numpy(), written["boxes_reg"])
    assert torch.equal(sample.view_matrix, torch.eye(4)[None])


def test_features_decode_to_values_times_scale(cache):
    written = make_sample(cache.spec, 2).arrays
    decoded = cache[make_tokens(10)[2]].features["head"].decode()
    expected = written["features/head"].astype(np.float32) * written["features/head_scale"][..., None, None]
    np.testing.assert_allclose(decoded.numpy(), expected, rtol=1e-6)


def test_a_batch_keeps_the_order_of_its_tokens(cache):
    tokens = make_tokens(10)
    chosen = (9, 0, 5, 0)
    batch = cache.read([tokens[i] for i in chosen], layers=("backbone0",), head_maps=True)
    assert batch.tokens == tuple(tokens[i] for i in chosen)
    assert list(batch.features) == ["backbone0"]
    for row, position in enumerate(chosen):
        written = make_sample(cache.spec, position).arrays
        np.testing.assert_array_equal(batch.features["backbone0"].values[row].numpy(), written["features/backbone0"][0])
        np.testing.assert_array_equal(batch.heatmap[row].numpy(), written["heatmap"][0])
        np.testing.assert_array_equal(batch.head_maps["vel"][row].numpy(), written["boxes_vel"][0])
    assert batch.view_matrix.shape == (4, 4, 4)


def test_head_maps_are_left_out_unless_asked_for(cache):
    assert cache.read(make_tokens(10)[:2]).head_maps == {}


def test_tokens_are_a_sequence_in_dump_order(cache):
    tokens = make_tokens(10)
    assert len(cache) == 10
    assert tuple(cache.tokens) == tokens
    assert cache.tokens[2:4] == tokens[2:4]
    assert cache.tokens[-1] == tokens[-1]
    assert [cache.tokens.index(token) for token in tokens] == list(range(10))
    assert all(token in cache for token in tokens)


@pytest.mark.parametrize("token", ["", "zzz", "0000f", "f" * 500, "0" * 4 + "ff"])
def test_tokens_that_were_not_dumped(cache, sealed_store, token):
    assert token not in cache
    with pytest.raises(NotCachedError) as caught:
        cache[token]
    message = str(caught.value)
    assert message.startswith(f"the store does not hold this token ({sealed_store})")
    assert "mini_train" in message
    assert isinstance(caught.value, KeyError)


def test_a_layer_that_was_not_dumped(cache, sealed_store):
    with pytest.raises(NotCachedError) as caught:
        cache.read(make_tokens(10)[:1], layers=("neck",))
    assert f"this layer ({sealed_store}); got neck; expected head or backbone0 or backbone1" in str(caught.value)


@pytest.mark.parametrize("view", [-1, 1])
def test_a_view_that_was_not_dumped(cache, view):
    with pytest.raises(NotCachedError, match="view"):
        cache.read(make_tokens(10)[:1], views=(view,))


def test_no_store_there(tmp_path):
    with pytest.raises(StoreError) as caught:
        TeacherCache(tmp_path / "nothing.zarr")
    assert "there is no store here" in str(caught.value)
    assert "nothing.zarr" in str(caught.value)


def test_an_unsealed_store_is_refused_unless_asked_for(tmp_path):
    path, tokens = tmp_path / "teacher.zarr", make_tokens(10)
    with open_writer(path) as writer:
        fill(writer, [1])
    with pytest.raises(UnsealedError) as caught:
        TeacherCache(path)
    assert "allow_partial=True" in str(caught.value)
    cache = TeacherCache(path, allow_partial=True)
    assert tuple(cache.tokens) == tokens[4:8]
    assert cache[tokens[5]].token == tokens[5]
    assert tokens[0] not in cache
    with pytest.raises(NotCachedError):
        cache.read(tokens[:1])


def test_an_expectation_that_holds(cache, sealed_store):
    TeacherCache(sealed_store, expect=cache.spec)
    TeacherCache(sealed_store, expect={"teacher": {"name": "small"}, "points": {"past_sweeps": 9}})


def test_an_expectation_that_fails_is_a_readable_diff(sealed_store):
    expected = {"teacher": {"name": "large"}, "canvas_grid": {"frame": "ego"}}
    with pytest.raises(MismatchError) as caught:
        TeacherCache(sealed_store, expect=expected)
    message = str(caught.value)
    assert "teacher.name: stored 'small', expected 'large'" in message
    assert "canvas_grid.frame: stored 'lidar', expected 'ego'" in message


def test_head_weights(cache):
    assert torch.equal(cache.head_weights()["heatmap.weight"], torch.arange(6.0).reshape(2, 3))


def test_damaged_head_weights(store):
    damage(store / "teacher_head.safetensors")
    with pytest.raises(CorruptStoreError, match="SHA-256"):
        TeacherCache(store).head_weights()


@pytest.mark.parametrize("array", ["features/head", "features/head_scale", "heatmap", "canvas_mask", "boxes_vel"])
def test_a_damaged_chunk_names_store_array_and_token(store, array):
    tokens = make_tokens(10)
    (file,) = (store / array).glob("c.1.*")
    damage(file)
    cache = TeacherCache(store)
    assert cache[tokens[0]].token == tokens[0]
    with pytest.raises(CorruptStoreError) as caught:
        cache[tokens[4]]
    assert f"({store}, {array}, token {tokens[4]})" in str(caught.value)
    assert "cli verify" in str(caught.value)


def test_a_damaged_index(store):
    tokens = make_tokens(10)
    damage(store / "heatmap" / "c.0.0.0.0.0", offset=-20)
    with pytest.raises(CorruptStoreError, match="heatmap, shard 0"):
        TeacherCache(store)[tokens[0]]


def test_a_shard_cut_short(store):
    os.truncate(store / "heatmap" / "c.0.0.0.0.0", 100)
    with pytest.raises(CorruptStoreError, match="cut short"):
        TeacherCache(store)[make_tokens(10)[0]]


@pytest.mark.parametrize("key", ["heatmap/c.0.0.0.0.0", "manifest/0.json"])
def test_a_missing_file_is_never_read_as_zeros(store, key):
    (store / key).unlink()
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        TeacherCache(store)[make_tokens(10)[0]]


def test_a_shard_of_another_store_is_not_taken(tmp_path):
    ours, other = make_store(tmp_path / "ours.zarr"), make_store(tmp_path / "other.zarr", count=11)
    name = "heatmap/c.2.0.0.0.0"
    (ours / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CorruptStoreError):
        TeacherCache(ours)[make_tokens(10)[9]]


@pytest.mark.parametrize("key", ["zarr.json", "token/c.0.0", "token_order/c.0", "view_matrix/c.0.0.0"])
def test_damage_raises_when_the_store_is_opened(store, key):
    damage(store / key)
    with pytest.raises(CorruptStoreError, match=key):
        TeacherCache(store)
    (store / key).write_bytes(b"")
    with pytest.raises(CorruptStoreError, match=key):
        TeacherCache(store)


def test_pickling_opens_the_store_again(cache):
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again[make_tokens(10)[3]].heatmap, cache[make_tokens(10)[3]].heatmap)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_read_after_the_parent_has(cache, method):
    tokens = make_tokens(10)
    expected = [int(cache[token].heatmap.sum()) for token in tokens]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=sum_heatmaps, args=(cache, tokens, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [expected] * 2
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0


class Batches(Dataset):
    """One batch of all samples, and whether its memory was the parent's before it was sent."""

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> tuple[TeacherBatch, bool]:
        batch = self.cache.read(self.cache.tokens, head_maps=True)
        tensors = [batch.heatmap, batch.canvas_mask, batch.view_matrix, *batch.head_maps.values()]
        tensors += [t for layer in batch.features.values() for t in (layer.values, layer.scale)]
        return batch, all(tensor.is_shared() for tensor in tensors)


def test_a_loaders_worker_reads_into_memory_of_the_parent(cache):
    ((batch, shared),) = DataLoader(Batches(cache), batch_size=None, num_workers=1)
    assert shared
    expected = cache.read(cache.tokens, head_maps=True)
    assert torch.equal(batch.heatmap, expected.heatmap)
    for name, layer in expected.features.items():
        assert torch.equal(batch.features[name].values, layer.values)
        assert torch.equal(batch.features[name].scale, layer.scale)
    assert not Batches(cache)[0][1]


def test_threads_read_the_same(cache):
    tokens = make_tokens(10)
    expected = cache.read(tokens).heatmap
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(cache.read(tokens).heatmap)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)


def test_no_file_stays_open(cache):
    tokens = make_tokens(10)
    cache.read(tokens)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        cache.read(tokens)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_to_moves_everything(cache):
    batch = cache.read(make_tokens(10)[:2], head_maps=True).to("meta")
    tensors = [batch.heatmap, batch.canvas_mask, batch.view_matrix, *batch.head_maps.values()]
    assert {t.device.type for t in tensors + [f.values for f in batch.features.values()]} == {"meta"}


@pytest.mark.gpu
def test_pinned_batch_decodes_the_same_on_a_gpu(cache):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    batch = cache.read(make_tokens(10))
    moved = batch.pin_memory().to("cuda", non_blocking=True)
    for name, layer in batch.features.items():
        assert torch.allclose(moved.features[name].decode().cpu(), layer.decode(), rtol=1e-6)


def test_reading_into_buffers(cache):
    tokens = make_tokens(10)
    out = cache.buffers(4, layers=("head", "backbone1"), head_maps=True)
    for chosen in (tokens[:4], tokens[7:]):
        batch = cache.read(chosen, out=out)
        expected = cache.read(chosen, layers=("head", "backbone1"), head_maps=True)
        assert batch.tokens == chosen
        assert batch.heatmap.data_ptr() == out.heatmap.data_ptr()
        assert torch.equal(batch.heatmap, expected.heatmap)
        assert list(batch.features) == ["head", "backbone1"]
        for name, layer in expected.features.items():
            assert torch.equal(batch.features[name].decode(), layer.decode())
        assert torch.equal(batch.head_maps["vel"], expected.head_maps["vel"])
        assert torch.equal(batch.view_matrix, expected.view_matrix)
