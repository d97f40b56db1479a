"""A DataLoader's speed on our store, beside other readers of it and other formats."""

import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import BATCH, Peer, Sample, other_formats, our_batches, same_store
from benchmarks.tables import show, spread
from cache.store.prefetch import prefetched
from cache.store.reader import TeacherCache

COLUMNS = ("", "fidelity", "MB on disk", "warm, ms", "cold, ms", "cold, MB from disk")


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Milliseconds a sample from the first batch to the last, and bytes a sample that came from the disk."""

    cold_ms: list[float]
    warm_ms: list[float]
    disk_bytes: float


def report(store: Path, folder: Path, epochs: int) -> None:
    """Print a line for each way to feed a training."""
    cache = TeacherCache(store)
    order = random.Random(1).sample(range(len(cache)), len(cache))
    threads, workers = lambda: _threads(cache, order), lambda: our_batches(store, order)
    rows = [
        _row("**this reader, 2 threads and no worker**", "8 bits, compressed", store, threads, len(cache), epochs),
        _row("**this reader**", "8 bits, compressed", store, workers, len(cache), epochs),
    ]
    for peer in (*same_store(), *other_formats()):
        rows.append(_peer_row(peer, cache, folder / "peer", order, epochs))
    show(f"end to end: {len(cache)} samples, batches of {BATCH}, two workers; a sample", COLUMNS, rows)


def _threads(cache: TeacherCache, order: Sequence[int]) -> Iterable[Any]:
    tokens = [cache.tokens[position] for position in order]
    batches = [tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH)]
    return _Again(lambda: prefetched(cache, batches, BATCH, layers=["head"]))


@dataclass(frozen=True)
class _Again:
    """An iterable of a generator function."""

    begin: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.begin()


def _peer_row(peer: Peer, cache: TeacherCache, folder: Path, order: Sequence[int], epochs: int) -> tuple[str, ...]:
    bits = {torch.uint8: "8 bits", torch.float16: "float16", torch.float32: "float32"}[peer.dtype]
    fidelity = bits + (", compressed" if peer.compressed else "")
    if peer.missing:
        return peer.name, fidelity, "not installed", "", "", ""
    if peer.write is None:
        return _row(peer.name, fidelity, cache.path, lambda: peer.batches(cache.path, order), len(cache), epochs)
    folder.mkdir()
    try:
        peer.write(folder, _samples(cache, peer.dtype))
        return _row(peer.name, fidelity, folder, lambda: peer.batches(folder, order), len(cache), epochs)
    finally:
        shutil.rmtree(folder)


def _samples(cache: TeacherCache, dtype: torch.dtype) -> Iterator[Sample]:
    for token in cache.tokens:
        head = cache.read((token,), layers=["head"]).features["head"]
        coded = dtype == torch.uint8
        yield Sample(values=head.values[0], scale=head.scale[0]) if coded else Sample(values=head.decode(dtype)[0])


def _row(
    name: str, fidelity: str, path: Path, begin: Callable[[], Iterable[Any]], samples: int, epochs: int
) -> tuple[str, ...]:
    times = _run(path, begin, samples, epochs)
    stored = sum(file.stat().st_size for file in _files(path)) / samples  # some formats leave unpacked copies
    row = name, fidelity, f"{stored / 1e6:.2f}", spread(times.warm_ms), spread(times.cold_ms)
    print(f"measured {', '.join(row)}", flush=True)
    return *row, f"{times.disk_bytes / 1e6:.2f}"


def _run(path: Path, begin: Callable[[], Iterable[Any]], samples: int, epochs: int) -> Epochs:
    """Twice: forget the files' pages, open, one epoch; the epochs after it are warm."""
    cold, warm, disk = [], [], []
    for _ in range(2):
        _forget(path)
        before = _disk_bytes()
        loader = begin()
        cold.append(_epoch(loader, samples))
        warm += [_epoch(loader, samples) for _ in range(epochs)]
        del loader  # Workers are waited for: what they read is counted then.
        disk.append((_disk_bytes() - before) / samples)
    return Epochs(cold_ms=cold, warm_ms=warm, disk_bytes=min(disk))


def _epoch(loader: Iterable[Any], samples: int) -> float:
    """Milliseconds a sample, without the time to the first batch, in which workers start."""
    batches = iter(loader)
    next(batches)
    began, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
    return 1e3 * (time.perf_counter() - began) / min(count * BATCH, samples)


def _forget(path: Path) -> None:
    """Drop a folder's pages from the page cache; they have to be clean for that."""
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _disk_bytes() -> int:
    """What this process and those that it has waited for have read from the disk."""
    return 512 * sum(resource.getrusage(who).ru_inblock for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
