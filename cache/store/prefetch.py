"""Reading of batches ahead, by threads."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cache.store.batch import TeacherBatch
from cache.store.reader import TeacherCache


def prefetched(
    cache: TeacherCache,
    batches: Iterable[Sequence[str]],
    batch_size: int,
    *,
    layers: Sequence[str] | None = None,
    views: Iterable[Sequence[int]] | None = None,
    head_maps: bool = False,
    threads: int = 2,
    pin: bool = False,
) -> Generator[TeacherBatch, None, None]:
    """Batches of a cache in order, read ahead by threads into reused buffers.

    The tensors of a batch are overwritten once two more batches have been requested: a copy of them to a device may
    still run while the next batch is used.

    Args:
        batch_size: of the largest batch.
        views: for each batch, an index into `spec.views` for each of its tokens; the first view by default.
        pin: Page-locked buffers.

    Raises:
        NotCachedError, CorruptStoreError: see `TeacherCache.read`.
    """
    ring = [cache.buffers(batch_size, layers, head_maps, pin) for _ in range(threads + 1)]
    waiting: deque[Future[TeacherBatch]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        requests = ((tokens, None) for tokens in batches) if views is None else zip(batches, views, strict=True)
        for number, (tokens, chosen) in enumerate(requests):
            if len(waiting) == threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(cache.read, tokens, views=chosen, out=ring[number % len(ring)]))
        while waiting:
            yield waiting.popleft().result()
