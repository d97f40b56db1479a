"""Dump a teacher: frames -> teacher -> writer. Loading, the teacher and writing overlap; memory holds a few batches."""

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache.dumping.config import DumpConfig
from cache.dumping.setup import DumpSetup
from cache.errors import UnsealedError
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
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

    def __str__(self) -> str:
        if not self.written:
            return f"{self.path}: all {self.samples} samples were there already, nothing to do"
        size = self.bytes_written / self.written / 1e6
        rest = "complete" if self.sealed else "not complete yet: other parts are still to come"
        return f"{self.path}: {self.written} of {self.samples} samples written, {size:.2f} MB each; {rest}"


def dump(
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    out: Path,
    progress: Callable[[DumpProgress], None] = lambda _: None,
    part: Part = WHOLE,
) -> DumpReport:
    """Run the teacher over all frames that the store still lacks, and seal it once it lacks none.

    A resumed dump writes the same bytes as an uninterrupted one if the teacher is deterministic.

    Args:
        progress: called after each batch.
        part: which of the shards to write, where several processes share the dump.

    Raises:
        TeacherError: the teacher gives values that are not finite, or maps that do not fit its grids.
        ConfigError: the teacher lacks a layer, or a codec's loss exceeds its budget.
        DataError: a frame's points are missing or broken.
        UnsealedError: the dump was interrupted.
        StoreError: see `StoreWriter`.
    """
    return fill_store(DumpSetup.of(config, frames, teacher), out, progress, part)


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
            done = _fill(writer, setup, progress)
        except KeyboardInterrupt:
            raise UnsealedError(
                "the dump was interrupted", where=out, cure="Run the same command again to resume it"
            ) from None
        sealed = writer.seal()
    return DumpReport(
        path=Path(out),
        samples=setup.spec.data.samples,
        written=done.samples,
        bytes_written=done.bytes,
        seconds=time.monotonic() - began,
        sealed=sealed,
    )


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Frames of one pass of the teacher, all of one shard."""

    shard: int
    positions: list[int]
    ends_shard: bool


@dataclass(frozen=True, kw_only=True)
class _Written:
    samples: int = 0
    bytes: int = 0


def _fill(writer: StoreWriter, setup: DumpSetup, progress: Callable[[DumpProgress], None]) -> _Written:
    """Write the missing shards."""
    batches = list(_batches(writer, setup.config.batch_size))
    total = sum(len(batch.positions) for batch in batches)
    done, began = _Written(), time.monotonic()
    with closing(_overlapped(_jobs(writer, batches, setup), limit=2)) as results:
        for written in results:
            done = _Written(samples=done.samples + written.samples, bytes=done.bytes + written.bytes)
            progress(_progress(done, total, time.monotonic() - began))
    return done


def _jobs(writer: StoreWriter, batches: list[_Batch], setup: DumpSetup) -> Iterator[Callable[[], _Written]]:
    """Run the teacher over the batches; each job writes what is encoded of one."""
    workers = setup.config.workers if batches else 0
    positions = [batch.positions for batch in batches]
    loader = Loader(
        setup.prepared,
        batch_sampler=positions,
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=1 if workers else None,  # a batch holds all views: memory stays bounded
    )
    for batch, frames in zip(batches, loader, strict=True):
        yield partial(_write, writer, batch, setup.encode(frames))


def _overlapped(jobs: Iterable[Callable[[], _Written]], limit: int) -> Generator[_Written, None, None]:
    """Run jobs in order in another thread, at most `limit` of them waiting while the next is made here."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
    waiting: deque[Future[_Written]] = deque()
    try:
        for job in jobs:
            waiting.append(thread.submit(job))
            while len(waiting) > limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def _batches(writer: StoreWriter, batch_size: int) -> Iterator[_Batch]:
    for shard in writer.missing_shards():
        positions = writer.positions(shard)
        for start in range(0, len(positions), batch_size):
            chosen = list(positions[start : start + batch_size])
            yield _Batch(shard=shard, positions=chosen, ends_shard=chosen[-1] == positions[-1])


def _write(writer: StoreWriter, batch: _Batch, samples: list[StoredSample]) -> _Written:
    shard = writer.shard(batch.shard)
    size = shard.add(samples)
    if batch.ends_shard:
        shard.commit()
    return _Written(samples=len(samples), bytes=size)


def _progress(done: _Written, total: int, seconds: float) -> DumpProgress:
    rate = done.samples / seconds
    return DumpProgress(
        done=done.samples,
        total=total,
        samples_per_s=rate,
        bytes_per_sample=done.bytes / done.samples,
        left_s=(total - done.samples) / rate,
    )
