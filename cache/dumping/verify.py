"""Check the integrity of a store, and repair it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.dumping.config import DumpConfig
from cache.dumping.run import DumpProgress, fill_store
from cache.dumping.setup import DumpSetup
from cache.errors import CorruptStoreError
from cache.nuscenes.frames import Frames
from cache.nuscenes.index_files import KEPT
from cache.nuscenes.kept import damaged_files
from cache.store.documents import node_files, read_document, read_file
from cache.store.format import REPAIR, index_bytes
from cache.store.layout import ROOT
from cache.store.reader import TeacherCache
from cache.teacher.base import Teacher


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

    @property
    def damaged_shards(self) -> list[int]:
        """The shards to dump again."""
        return sorted({damage.shard for damage in self.damage if damage.shard is not None})

    def __str__(self) -> str:
        if self.damage:
            lines = [str(damage.error) for damage in self.damage]
            return f"{self.path}: {len(lines)} faults\n" + "\n".join(lines)
        depth = "every byte was checked" if self.full else "documents, sizes and indexes were checked, not the data"
        state = "complete" if self.sealed else "not complete yet"
        return f"{self.path}: no fault in {self.samples} samples, {self.bytes / 1e6:.1f} MB ({depth}); {state}"


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
    damage = [*_damaged_documents(cache)]
    size = 0
    shards = cache.committed_shards()
    for done, shard in enumerate(shards, start=1):
        found, read = _check_shard(cache, shard, full)
        damage, size = damage + found, size + read
        progress(done, len(shards))
    return VerifyReport(
        path=path, full=full, sealed=cache.attributes.sealed, samples=len(cache), bytes=size, damage=tuple(damage)
    )


def repair(
    path: str | Path,
    config: DumpConfig,
    frames: Frames,
    teacher: Teacher,
    progress: Callable[[DumpProgress], None] = lambda _: None,
) -> VerifyReport:
    """Write damaged small files again, and dump the frames of damaged shards again.

    Raises:
        CorruptStoreError: the root document itself is damaged, and with it the spec.
        MismatchError: the teacher or the frames are not those of the store.
    """
    setup = DumpSetup.of(config, frames, teacher)
    setup.open_writer(Path(path), redo=()).close()  # the small files first: verify reads tokens
    fill_store(setup, Path(path), progress, redo=verify(path).damaged_shards)
    return verify(path)


def _damaged_documents(cache: TeacherCache) -> Iterator[Damage]:
    """Faults of files that opening the cache does not read: the head's weights, frames, metadata of single arrays."""
    try:
        cache.head_weights()
    except CorruptStoreError as error:
        yield Damage(error=error)
    for name in damaged_files(cache.path, cache.tokens):
        what = "a file of the frames that the store carries is missing or damaged"
        yield Damage(error=CorruptStoreError(what, where=cache.path / KEPT / name, cure=REPAIR))
    for key, data in node_files(read_document(cache.path / ROOT)).items():
        file = cache.path / key
        try:
            same = json.loads(read_file(file)) == json.loads(data)
        except (CorruptStoreError, ValueError):
            same = False
        if not same:
            what = "an array's metadata is missing or differs from the root's copy"
            yield Damage(error=CorruptStoreError(what, where=file, cure=REPAIR))


def _check_shard(cache: TeacherCache, shard: int, full: bool) -> tuple[list[Damage], int]:
    damage, size = [], 0
    for name, array in cache.shards.arrays.items():
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
    size = (cache.path / array.key(shard)).stat().st_size
    if not size == recorded == used:
        raise CorruptStoreError(
            "a shard has another size",
            where=f"{cache.path}, {name}, shard {shard}",
            got=f"{size} bytes",
            expected=recorded,
            cure=REPAIR,
        )
    return size
