"""frames -> teacher -> writer. Loading, the teacher and writing overlap; memory holds a few batches."""

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from pydantic import Field, PositiveInt

from cache.config import Strict
from cache.dumping.encode import joined_views, stored_samples
from cache.dumping.spec_builder import DumpedFrames, PreparedFrames, spec_of
from cache.errors import UnsealedError
from cache.geometry.views import CANONICAL, ViewsConfig, sample_label
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.spec import CodecSpec
from cache.store.layout import Layout, StoredSample
from cache.store.partition import WHOLE, Part
from cache.store.writer import StoreWriter
from cache.teacher.base import Teacher
from cache.versions import software_versions


class DumpConfig(Strict):
    """What to dump. Layers after a ReLU take codec kind unsigned, others signed."""

    teacher: str
    """An mmdet3d config: a file, or a name of mmdet3d's model zoo."""
    version: str = "v1.0-trainval"
    splits: tuple[str, ...] = ("train", "val")
    layers: dict[str, CodecSpec] = Field(
        default_factory=lambda: {name: CodecSpec() for name in ("head", "backbone0", "backbone1", "backbone2")}
    )
    head_maps: bool = True
    """Keep the head's other maps as float16 too: the cached teacher can be evaluated, and boxes be drawn."""
    views: ViewsConfig = CANONICAL
    depth: bool = False
    """Keep the key sweep's points in the cameras: a training that learns depth then needs no LiDAR file."""
    samples_per_shard: int = Field(32, ge=1, le=64)
    zstd_level: int = Field(1, ge=1, le=19)
    batch_size: PositiveInt = 4
    """Frames that the teacher sees at once, all in one view; never from two shards, so that a resumed dump forms the
    same batches."""
    workers: int = Field(4, ge=0)
    """Processes that load points and voxelise."""

    @property
    def layout(self) -> Layout:
        """How the store is cut into files."""
        return Layout(samples_per_shard=self.samples_per_shard, zstd_level=self.zstd_level)


@dataclass(frozen=True, kw_only=True)
class DumpProgress:
    """How far a dump is; rates are over this run."""

    done: int
    total: int
    samples_per_s: float
    bytes_per_sample: float
    left_s: float


@dataclass(frozen=True, kw_only=True)
class DumpReport:
    """What a dump did."""

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
    redo: Collection[int] | None = None,
) -> DumpReport:
    """Run the teacher over all frames that the store still lacks, and seal it once it lacks none.

    A resumed dump writes the same bytes as an uninterrupted one, as far as the teacher repeats its own.

    Args:
        progress: called after each batch.
        part: which of the shards to write, where several processes share the dump.
        redo: shards to write again; None unless the store is being repaired.

    Raises:
        TeacherError: the teacher gives values that are not finite, or maps that do not fit its grids.
        ConfigError: the teacher lacks a layer, or a codec's loss exceeds its budget.
        DataError: a frame's points are missing or broken.
        UnsealedError: the dump was interrupted.
        StoreError: see `StoreWriter`.
    """
    began = time.monotonic()
    with open_writer(config, frames, teacher, out, part, redo) as writer:
        try:
            done = _fill(writer, config, frames, teacher, progress)
        except KeyboardInterrupt:
            raise UnsealedError(
                "the dump was interrupted", where=out, cure="Run the same command again to resume it"
            ) from None
        sealed = writer.seal()
    seconds = time.monotonic() - began
    return DumpReport(
        path=Path(out),
        samples=len(frames),
        written=done.samples,
        bytes_written=done.bytes,
        seconds=seconds,
        sealed=sealed,
    )


def open_writer(
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    out: Path,
    part: Part = WHOLE,
    redo: Collection[int] | None = None,
) -> StoreWriter:
    """Create or resume the store of a dump; see `StoreWriter`."""
    return StoreWriter(
        out,
        spec_of(config.layers, config.head_maps, config.views, config.depth, frames, teacher),
        frames.tokens,
        head_weights=teacher.head_weights(),
        software=software_versions(),
        layout=config.layout,
        part=part,
        redo=redo,
    )


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Frames that the teacher sees at once, all of one shard."""

    shard: int
    positions: list[int]
    ends_shard: bool


@dataclass(frozen=True, kw_only=True)
class _Written:
    samples: int = 0
    bytes: int = 0


def _fill(
    writer: StoreWriter,
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    progress: Callable[[DumpProgress], None],
) -> _Written:
    """Write the missing shards."""
    batches = list(_batches(writer, config.batch_size))
    total = sum(len(batch.positions) for batch in batches)
    done, began = _Written(), time.monotonic()
    with closing(_overlapped(_jobs(writer, batches, config, frames, teacher), limit=2)) as results:
        for written in results:
            done = _Written(samples=done.samples + written.samples, bytes=done.bytes + written.bytes)
            progress(_progress(done, total, time.monotonic() - began))
    return done


def _jobs(
    writer: StoreWriter, batches: list[_Batch], config: DumpConfig, frames: Frames, teacher: Teacher
) -> Iterator[Callable[[], _Written]]:
    """Run the teacher over the batches, view after view; what is left to do of each is to write it."""
    names = writer.spec.views
    numbers = [[p * len(names) + v for p in batch.positions] for batch in batches for v in range(len(names))]
    dumped = DumpedFrames(prepared=PreparedFrames.of(frames, teacher, config.views), depth=writer.spec.depth)
    workers = config.workers if batches else 0
    loaded = iter(Loader(dumped, batch_sampler=numbers, collate_fn=list, num_workers=workers))
    for batch in batches:
        views, codes = [], []
        for name, one_view in zip(names, islice(loaded, len(names)), strict=True):
            labels = tuple(sample_label(frames.tokens[position], name) for position in batch.positions)
            with torch.inference_mode():
                views.append(stored_samples(teacher([inputs for inputs, _ in one_view]), labels, writer.spec))
            codes.append([None if each is None else each.numpy() for _, each in one_view])
        yield partial(_write, writer, batch, joined_views(views, codes[0]))


def _overlapped(jobs: Iterable[Callable[[], _Written]], limit: int) -> Generator[_Written, None, None]:
    """Work through jobs in order in another thread, at most `limit` of them waiting while the next is made here."""
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
