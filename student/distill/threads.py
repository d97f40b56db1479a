"""How work is shared by a CPU's cores.

torch lets all its threads share every operation on more than 32,768 elements. Operations on maps of a batch are little
larger than that, and each would wait for the slowest thread, which on a machine with other work to do (loader workers
above all) can be scheduled out for milliseconds.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, no operation of the calling thread is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def for_each(items: Sequence[Item], work: Callable[[int, Item], Result]) -> list[Result]:
    """work(index, item) of all items; as many at a time as torch has threads, each with one thread to itself."""
    threads = min(torch.get_num_threads(), len(items))
    if threads == 1:
        return [work(index, item) for index, item in enumerate(items)]
    # The number of threads is each thread's own, but threads to come start with the one that was set last: hence the
    # outer scope, which sets it back.
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as crew:
        return list(crew.map(work, range(len(items)), items))
