"""Dump a teacher: frames -> teacher -> writer. Loading, the teacher and writing overlap; memory holds a few batches."""

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from cache.dumping.config import DumpConfig
from cache.dumping.setup import DumpSetup
from cache.errors import UnsealedError
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader, loader_errors, require_shared_memory, shared_bytes
from cache.store.layout import StoredSample
from cache.store.partition import WHOLE, Part
from cache.store.writer import StoreWriter
from cache.teacher.base import Teacher


@dataclass(frozen=True, kw_only=True)
class DumpProgress:
    """Progress of a dump; rates are over this run."""

    done: int
    total: int
    samples_per_s: float
    bytes_per_sample: float
    left_s: float


@dataclass(frozen=True, kw_only=True)
class DumpReport:
    """Result of a dump."""

    path: Path
    samples: int
    """In the whole store."""
    written: int
    """By this run."""
    bytes_written: int
    seconds: float
    sealed: bool
    part: str = "0/1"
    part_samples: int = 0
    """Of this run's part."""
    missing: int = 0
    """Of the whole store, after this run: other parts write them."""
    written_again: tuple[str, ...] = ()
    """Small files and frames that the store lacked, or that were damaged."""

    def __str__(self) -> str:
        if not self.written_again:
            return self._progress()
        return f"{self._progress()}; written again: {', '.join(self.written_again)}"

    def _progress(self) -> str:
        whole = self.part_samples == self.samples
        rest = "complete" if self.sealed else f"not complete yet: other parts still write {self.missing} samples"
        if self.written:
            size = self.bytes_written / self.written / 1e6
            return f"{self.path}: {self.written} of {self.samples} samples written, {size:.2f} MB each; {rest}"
        if whole:
            rest = "" if self.written_again else ", nothing to do"
            return f"{self.path}: all {self.samples} samples were there already{rest}"
        if not self.part_samples:
            return f"{self.path}: part {self.part} has no shard to write, there are fewer shards than parts; {rest}"
        return f"{self.path}: all {self.part_samples} samples of part {self.part} were there already; {rest}"


def dump(
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    out: Path,
    progress: Callable[[DumpProgress], None] = lambda _: None,
    part: Part = WHOLE,
    checkpoint: Path | None = None,
) -> DumpReport:
    """Run the teacher over all frames that the store still lacks, and seal it once it lacks none.

    A resumed dump writes the same bytes as an uninterrupted one if the teacher is deterministic.

    Args:
        progress: called after each batch.
        part: which of the shards to write, where several processes share the dump.
        checkpoint: the file that the teacher was loaded from; its hash is recorded, and compared when a dump resumes.

    Raises:
        TeacherError: the teacher gives values that are not finite, or maps that do not fit its grids.
        ConfigError: the teacher lacks a layer, or a codec's loss exceeds its budget.
        DataError: a frame's points are missing or broken.
        UnsealedError: the dump was interrupted.
        StoreError: see `StoreWriter`.
    """
    return fill_store(DumpSetup.of(config, frames, teacher, checkpoint), out, progress, part)


def fill_store(
    setup: DumpSetup,
    out: Path,
    progress: Callable[[DumpProgress], None] = lambda _: None,
    part: Part = WHOLE,
    redo: Collection[int] | None = None,
) -> DumpReport:
    """Write the shards that a store lacks; see `dump`.

    Args:
        redo: shards to write again; None unless the store is being repaired.
    """
    began = time.monotonic()
    with setup.open_writer(out, part, redo) as writer:
        try:
            with loader_errors():
                written, size = _fill(writer, setup, progress)
        except KeyboardInterrupt:
            raise UnsealedError(
                "the dump was interrupted", where=out, cure="Run the same command again to resume it"
            ) from None
        sealed = writer.seal()
        missing = writer.missing_samples()
        part_samples = sum(len(writer.positions(shard)) for shard in writer.shards)
        written_again = tuple(writer.mended)
    return DumpReport(
        path=Path(out),
        samples=setup.spec.data.samples,
        written=written,
        bytes_written=size,
        seconds=time.monotonic() - began,
        sealed=sealed,
        part=str(part),
        part_samples=part_samples,
        missing=missing,
        written_again=written_again,
    )


class _Batch(NamedTuple):
    """Frames of one pass of the teacher, all of one shard."""

    shard: int
    positions: list[int]
    ends_shard: bool


def _fill(writer: StoreWriter, setup: DumpSetup, progress: Callable[[DumpProgress], None]) -> tuple[int, int]:
    """Write the missing shards; returns the numbers of samples and of bytes written."""
    batches = list(_batches(writer, setup.config.batch_size))
    total = sum(len(batch.positions) for batch in batches)
    done, size, began = 0, 0, time.monotonic()
    with closing(_overlapped(_jobs(writer, batches, setup), limit=2)) as results:
        for batch, written in zip(batches, results, strict=True):
            done, size = done + len(batch.positions), size + written
            rate = done / (time.monotonic() - began)
            left_s = (total - done) / rate
            progress(
                DumpProgress(done=done, total=total, samples_per_s=rate, bytes_per_sample=size / done, left_s=left_s)
            )
    return done, size


def _batches(writer: StoreWriter, batch_size: int) -> Iterator[_Batch]:
    for shard in writer.missing_shards():
        positions = writer.positions(shard)
        for start in range(0, len(positions), batch_size):
            chosen = list(positions[start : start + batch_size])
            yield _Batch(shard, chosen, ends_shard=chosen[-1] == positions[-1])


def _jobs(writer: StoreWriter, batches: list[_Batch], setup: DumpSetup) -> Iterator[Callable[[], int]]:
    """Run the teacher over the batches; each job writes one and returns its bytes."""
    workers = setup.config.workers if batches else 0
    if workers:
        one = setup.prepared[batches[0].positions[0]]
        tensors = (part for part in tree_leaves(tuple(one)) if isinstance(part, Tensor))
        require_shared_memory(shared_bytes(tensors) * setup.config.batch_size, workers + 1)
    loader = Loader(
        setup.prepared,
        batch_sampler=[batch.positions for batch in batches],
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=1 if workers else None,  # a batch holds all views: memory stays bounded
    )
    for batch, frames in zip(batches, loader, strict=True):
        yield partial(_write, writer, batch, setup.encode(frames))


def _write(writer: StoreWriter, batch: _Batch, samples: list[StoredSample]) -> int:
    shard = writer.shard(batch.shard)
    size = shard.add(samples)
    if batch.ends_shard:
        shard.commit()
    return size


def _overlapped(jobs: Iterable[Callable[[], int]], limit: int) -> Generator[int, None, None]:
    """Run jobs in order in another thread, at most `limit` of them waiting while the next is made here."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
    waiting: deque[Future[int]] = deque()
    try:
        for job in jobs:
            waiting.append(thread.submit(job))
            while len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
