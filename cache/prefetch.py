"""The next batches of a cache, read by threads while the current one is used."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from cache.reader import TeacherCache
from cache.sample import TeacherBatch


def prefetched(
    cache: TeacherCache,
    batches: Iterable[Sequence[str]],
    batch_size: int,
    *,
    layers: Sequence[str] | None = None,
    head_maps: bool = False,
    threads: int = 2,
    pin: bool = False,
) -> Generator[TeacherBatch, None, None]:
    """Read batches of tokens ahead, each by one of `threads`, into buffers that are used again and again.

    The tensors of a batch stay as they are until two more batches have been asked for: a copy of them to a device may
    still run while the next batch is used.

    Args:
        batch_size: of the largest batch.
        pin: Page-locked buffers.

    Raises:
        NotCachedError, CorruptStoreError: see `TeacherCache.read`.
    """
    ring = [cache.buffers(batch_size, layers, head_maps, pin) for _ in range(threads + 1)]
    waiting: deque[Future[TeacherBatch]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        for number, tokens in enumerate(batches):
            if len(waiting) == threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(cache.read, tokens, out=ring[number % len(ring)]))
        while waiting:
            yield waiting.popleft().result()
