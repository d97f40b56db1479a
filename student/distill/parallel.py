"""Distribution of work over a CPU's cores.

torch splits every operation on more than 32,768 elements among all its threads. Operations on the maps of a batch are
little larger than that, and each would wait for the slowest thread, which on a busy machine (loader workers above all)
can be scheduled out for milliseconds.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU = torch.device("cpu")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run the calling thread's operations on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def parallel_map(
    items: Sequence[Item], work: Callable[[int, Item], Result], device: torch.device = _CPU
) -> list[Result]:
    """work(index, item) of all items, in order: on a CPU as many at a time as torch has threads, each on one core."""
    threads = min(torch.get_num_threads(), len(items)) if device.type == "cpu" else 1
    if threads == 1:
        return [work(index, item) for index, item in enumerate(items)]
    # The number of threads is thread-local, but new threads start with the value set last: the outer scope resets it.
    with single_threaded(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, range(len(items)), items))
