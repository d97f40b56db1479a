"""Check the integrity of a store, and repair it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from cache.dumping.config import DumpConfig
from cache.dumping.run import DumpProgress, fill_store
from cache.dumping.setup import DumpSetup
from cache.errors import CorruptStoreError
from cache.nuscenes.frames import Frames
from cache.store.documents import FORMAT_VERSION
from cache.store.files import file_size
from cache.store.format import REPAIR, index_bytes
from cache.store.layout import FRAMES
from cache.store.reader import TeacherCache
from cache.store.small_faults import small_faults
from cache.store.stored_frames import frame_faults
from cache.teacher.base import Teacher

MOST_FAULTS = 10_000
"""The check ends there."""

SHOWN_FAULTS = 100
"""As text."""

WEAKER = (
    "format version 1: its shards are not bound to the store, so that whole shards that were exchanged with others "
    "are not found; stores dumped now are of version 2"
)
UNBOUND = (
    "the frames that it carries are not bound to it by its root, so that those of another store are not found unless "
    "they lack samples; `cli dump-teacher` with the store's configuration binds them"
)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One fault; `shard` is None if it concerns no shard."""

    error: CorruptStoreError
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of a check."""

    path: Path
    full: bool
    sealed: bool
    samples: int
    """Committed."""
    bytes: int
    """In shards."""
    damage: tuple[Damage, ...]
    format_version: int = FORMAT_VERSION
    checked_all: bool = True
    """False where the check ended at MOST_FAULTS."""
    frames_bound: bool = True
    """False where the store carries frames that its root does not name."""
    written_again: tuple[str, ...] = ()
    """By a repair: small files that were missing, damaged or another store's."""
    dumped_again: tuple[int, ...] = ()
    """By a repair: damaged shards."""

    @property
    def damaged_shards(self) -> list[int]:
        """The shards to dump again."""
        return sorted({damage.shard for damage in self.damage if damage.shard is not None})

    def __str__(self) -> str:
        if self.damage:
            lines = [str(damage.error) for damage in self.damage[:SHOWN_FAULTS]]
            if len(self.damage) > len(lines):
                lines.append(f"and {len(self.damage) - len(lines)} more")
            if not self.checked_all:
                lines.append("the rest was not checked")
            return f"{self.path}: {len(self.damage)} faults\n" + "\n".join([*lines, *self._notes()])
        depth = "every byte was checked" if self.full else "documents, sizes and indexes were checked, not the data"
        state = "complete" if self.sealed else "not complete yet"
        size = f"{self.bytes / 1e6:.1f} MB"
        first = f"{self.path}: no fault in {self.samples} samples, {size} ({depth}); {state}"
        return "\n".join([first, *self._notes()])

    def _notes(self) -> list[str]:
        """What a repair did, and what was not checked."""
        notes = [WEAKER] if self.format_version == 1 else [UNBOUND] if not self.frames_bound else []
        if self.dumped_again:
            notes.append(f"dumped again: shards {', '.join(map(str, self.dumped_again))}")
        if self.written_again:
            notes.append(f"written again: {', '.join(self.written_again)}")
        return notes


def verify(path: str | Path, full: bool = True, progress: Callable[[int, int], None] = lambda *_: None) -> VerifyReport:
    """Check a store; nothing is changed.

    Args:
        full: Check every byte; otherwise documents, file sizes and shard indexes.
        progress: Called with (done, total) shards.

    Raises:
        StoreError: there is no store.
        MismatchError: the store has another format version.
    """
    path = Path(path)
    try:
        cache = TeacherCache(path, allow_partial=True)
    except CorruptStoreError as error:
        return VerifyReport(path=path, full=full, sealed=False, samples=0, bytes=0, damage=(Damage(error=error),))
    small = chain(small_faults(cache), frame_faults(path, cache.attributes, cache.tokens))
    damage = [Damage(error=error) for error in small]
    size = 0
    shards = cache.committed_shards()
    for done, shard in enumerate(shards, start=1):
        found, read = _check_shard(cache, shard, full)
        damage += found
        size += read
        progress(done, len(shards))
        if len(damage) >= MOST_FAULTS:
            break
    return VerifyReport(
        path=path,
        full=full,
        sealed=cache.attributes.sealed,
        samples=len(cache),
        bytes=size,
        damage=tuple(damage),
        format_version=cache.attributes.format_version,
        checked_all=len(damage) < MOST_FAULTS,
        frames_bound=cache.attributes.frames_sha256 is not None or not (path / FRAMES).exists(),
    )


def repair(
    path: str | Path,
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    progress: Callable[[DumpProgress], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> VerifyReport:
    """Write damaged small files again, and dump the frames of damaged shards again; the report says which.

    Args:
        checkpoint: the file that the teacher was loaded from; see `cache.dumping.run.dump`.

    Raises:
        CorruptStoreError: the root document itself is damaged, and with it the spec.
        MismatchError: the teacher or the frames are not those of the store.
    """
    setup = DumpSetup.of(config, frames, teacher, checkpoint)
    with setup.open_writer(Path(path), redo=()) as writer:  # the small files first: verify reads tokens
        mended = tuple(writer.mended)
    damaged = verify(path).damaged_shards
    fill_store(setup, Path(path), progress, redo=damaged)
    return replace(verify(path), written_again=mended, dumped_again=tuple(damaged))


def _check_shard(cache: TeacherCache, shard: int, full: bool) -> tuple[list[Damage], int]:
    damage: list[Damage] = []
    size = 0
    for name, array in cache.shards.arrays.items():
        try:
            cache.shards.file(name, shard)
        except CorruptStoreError as error:  # the record, once for all arrays
            return [Damage(error=error, shard=shard)], size
        try:
            size += _check_file(cache, name, shard)
            for chunk in cache.chunks_of(shard) if full else ():
                if array.views or chunk.view == 0:
                    cache.shards.read(name, chunk, np.empty(array.shape, array.dtype))
        except CorruptStoreError as error:
            damage.append(Damage(error=error, shard=shard))
    return damage, size


def _check_file(cache: TeacherCache, name: str, shard: int) -> int:
    """Compare a shard file's size with the manifest and its index, which must account for every byte."""
    array = cache.shards.arrays[name]
    recorded = cache.shards.file(name, shard).bytes
    index = cache.shards.index(name, shard)
    numbers = sorted({array.chunk_number(chunk.row, chunk.view) for chunk in cache.chunks_of(shard)})
    used = index[numbers, 1].sum() + index_bytes(len(index))
    size = file_size(cache.path, array.key(shard))
    if not size == recorded == used:
        raise CorruptStoreError(
            "a shard has another size",
            where=f"{cache.path}, {name}, shard {shard}",
            got=f"{size} bytes",
            expected=recorded,
            cure=REPAIR,
        )
    return size
