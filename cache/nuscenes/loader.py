"""A DataLoader that raises its workers' errors unchanged, and ends where a worker cannot go on."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cache.errors import ConfigError, OfflineDistillError
from cache.terminal.errors import machine_error

SHARED_MEMORY = Path("/dev/shm")
"""Through which workers hand over their tensors; 64 MB in a container unless it is given more."""

OTHER_FILES = 128
"""Open in a process beside the tensors of its workers."""


class Loader(DataLoader):
    """DataLoader that raises a worker's OfflineDistillError unchanged; DataLoader adds the worker's traceback to it.

    With a GPU, batches are in page-locked memory.

    Raises:
        OfflineDistillError: while iterating: a worker was killed, or cannot hand over a batch.
    """

    def __init__(self, dataset: Dataset, *, collate_fn: Callable[[list], Any], **options: Any) -> None:
        if options.get("num_workers"):
            options.setdefault("multiprocessing_context", _Context())
        super().__init__(
            _ErrorsAsSamples(dataset=dataset),
            collate_fn=_Collate(function=collate_fn),
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with loader_errors():
            batches = super().__iter__()
        while True:
            with loader_errors(), _lost_connections():
                batch = next(batches, _END)
            if batch is _END:
                return
            if isinstance(batch, OfflineDistillError):
                raise batch
            yield batch


_END = object()


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Errors of a worker's files and memory arrive as samples; others of the system are of a worker that is gone."""
    try:
        yield
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise RuntimeError(f"DataLoader worker (pid unknown) is gone: {type(error).__name__}: {error}") from error


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn torch's and the system's errors about workers into an OfflineDistillError.

    Torch raises that a worker was killed wherever the main thread is, in the middle of a step too.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        known = machine_error(error)
        if known is None:
            raise
        raise known from error


def shared_bytes(tensors: Iterable[Tensor]) -> int:
    """The shared memory that tensors take on their way from a worker: a file of whole pages for each."""
    return sum(-(-tensor.nbytes // resource.getpagesize()) * resource.getpagesize() for tensor in tensors)


def require_shared_memory(batch_bytes: int, batches: int, processes: int = 1) -> None:
    """Raise unless /dev/shm has room for the batches that workers hold ready.

    Args:
        batch_bytes: of a batch's tensors; see `shared_bytes`.
        batches: that are ready or in use at a time, in each of the processes.

    Raises:
        ConfigError: it has not.
    """
    needed = batch_bytes * batches * processes
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if needed > free:
        raise ConfigError(
            "the loader's workers need more shared memory than there is",
            where=SHARED_MEMORY,
            got=f"{free / 1e6:,.1f} MB free",
            expected=f"{needed / 1e6:,.1f} MB: {processes * batches} batches of {batch_bytes / 1e6:,.1f} MB",
            cure="Give it more (docker run --shm-size=8g, or --ipc=host), or lower the number of workers or batch_size",
        )


def require_open_files(tensors: int, batches: int) -> None:
    """Allow this process as many open files as its workers' tensors take, one for each.

    Raises:
        ConfigError: the system does not allow as many.
    """
    needed = OTHER_FILES + tensors * batches
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(
            "the loader's workers need more open files than the system allows",
            where="ulimit -n",
            got=hard,
            expected=f"{needed}: {tensors} tensors in each of {batches} batches, and {OTHER_FILES} others",
            cure=f"Raise the limit with `ulimit -n {needed}`, or lower the number of workers or batch_size",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class _Popen(Popen):
    def terminate(self) -> None:
        """Kill: workers ignore SIGTERM, and one that hangs would be waited for."""
        self.kill()


class _Process(ForkProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Popen:
        return _Popen(process_obj)


class _Queue(Queue):
    """A queue whose thread sends the error where it cannot send a batch.

    The thread makes a batch's shared memory. multiprocessing prints its error and drops the batch, for which the
    training then waits for ever.
    """

    def _on_queue_feeder_error(self, error: Exception, batch: Any) -> None:
        known = machine_error(error)
        if known is None or not isinstance(batch, tuple) or isinstance(batch[1], OfflineDistillError):
            os._exit(1)
        self.put((batch[0], known))


class _Context(ForkContext):
    """Processes and queues of a loader."""

    Process = _Process

    def Queue(self, maxsize: int = 0) -> _Queue:
        return _Queue(maxsize, ctx=self.get_context())


@dataclass(frozen=True, kw_only=True)
class _ErrorsAsSamples(Dataset):
    """A data set that returns its errors, and the machine's, as samples."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        return _or_error(lambda: self.dataset[key])


@dataclass(frozen=True, kw_only=True)
class _Collate:
    """A collate function that returns an error among the samples, or its own."""

    function: Callable[[list], Any]

    def __call__(self, samples: Sequence[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, OfflineDistillError):
                return sample
        return _or_error(lambda: self.function(list(samples)))


def _or_error(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OfflineDistillError as error:
        return error
    except (OSError, MemoryError, RuntimeError) as error:
        known = machine_error(error)
        if known is None:
            raise
        return known
