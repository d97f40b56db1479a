import gc
import threading
import weakref

import pytest
import torch

from cache.errors import NotCachedError
from cache.store.prefetch import prefetched
from cache.store.reader import TeacherCache
from tests.factories.stores import make_store, make_tokens


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def batches_of(tokens: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_same_batches_in_the_same_order(cache, threads, size):
    batches = batches_of(make_tokens(10), size)
    found = prefetched(cache, iter(batches), size, head_maps=True, threads=threads)
    for tokens, batch in zip(batches, found, strict=True):
        expected = cache.read(tokens, head_maps=True)
        assert batch.tokens == tokens
        assert torch.equal(batch.heatmap, expected.heatmap)
        assert torch.equal(batch.canvas_mask, expected.canvas_mask)
        assert torch.equal(batch.head_maps["reg"], expected.head_maps["reg"])
        for name, layer in expected.features.items():
            assert torch.equal(batch.features[name].decode(), layer.decode())


def test_of_each_token_the_view_that_is_asked_for(tmp_path):
    cache = TeacherCache(make_store(tmp_path / "teacher.zarr", views=("canonical", "flip_y")))
    batches, views = batches_of(cache.tokens, 4), [(0, 1, 1, 0), (1, 0, 0, 1), (1, 1)]
    found = prefetched(cache, batches, 4, views=views)
    for tokens, chosen, batch in zip(batches, views, found, strict=True):
        assert torch.equal(batch.heatmap, cache.read(tokens, views=chosen).heatmap)
    assert not torch.equal(
        cache.read(cache.tokens, views=(0,) * 10).heatmap, cache.read(cache.tokens, views=(1,) * 10).heatmap
    )


def test_a_batch_stays_until_two_more_were_asked_for(cache):
    batches = batches_of(make_tokens(10), 1)
    found = prefetched(cache, batches, 1, threads=2)
    first = next(found)
    next(found)
    assert torch.equal(first.heatmap, cache.read(batches[0]).heatmap)
    found.close()


def test_an_error_of_a_thread_comes_through(cache):
    found = prefetched(cache, [make_tokens(10)[:1], ("unknown",)], 1)
    next(found)
    with pytest.raises(NotCachedError, match="got unknown"):
        next(found)


def test_threads_end_with_the_iteration(cache):
    before = threading.active_count()
    found = prefetched(cache, batches_of(make_tokens(10), 1), 1, threads=3)
    next(found)
    found.close()
    assert threading.active_count() == before


def test_buffers_are_reused_and_freed_with_the_iteration(cache):
    addresses, buffers = set(), weakref.WeakSet()
    for batch in prefetched(cache, batches_of(make_tokens(10), 1) * 3, 1, threads=2):
        addresses.add(batch.heatmap.data_ptr())
        buffers.add(batch.heatmap.untyped_storage())
    assert len(addresses) == 3  # one more than threads, for thirty batches
    del batch
    gc.collect()
    assert not buffers
