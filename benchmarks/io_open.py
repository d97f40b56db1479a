"""What it costs to open a store, by its number of samples."""

import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.tables import show, spread
from cache.spec import DataIdentity
from cache.store.documents import StoreAttributes
from cache.store.metadata import small_array_files, small_files
from cache.store.reader import TeacherCache

COUNTS = (100, 34_000, 1_000_000)
LOOKUPS = 1000


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One process: milliseconds of CPU to open, megabytes that it grew by, microseconds of CPU to find a token."""

    open_ms: float
    grown_mb: float
    find_us: float


COLUMNS = ("open, ms of CPU", "memory, MB", "find a token, us of CPU")


def report(attributes: StoreAttributes, folder: Path, processes: int = 5) -> None:
    """Print the sizes side by side."""
    rows = [(f"{count:,}", *measure(attributes, folder, count, processes)) for count in COUNTS]
    show("open", ("samples", *COLUMNS), rows)


def measure(attributes: StoreAttributes, folder: Path, count: int, processes: int = 5) -> tuple[str, ...]:
    """COLUMNS of a store like this one with so many samples."""
    found = _open_in_processes(_sparse(attributes, folder / f"sparse{count}.zarr", count), processes)
    return tuple(spread([getattr(each, name) for each in found]) for name in ("open_ms", "grown_mb", "find_us"))


def _sparse(attributes: StoreAttributes, path: Path, count: int) -> Path:
    """A store that says it is complete, without any shard."""
    chance = random.Random(0)
    tokens = tuple(f"{chance.getrandbits(128):032x}" for _ in range(count))
    data = DataIdentity.of("sparse", ("all",), tokens)
    spec = attributes.spec.model_copy(update={"data": data})
    changes = {"spec": spec, "fingerprint": spec.fingerprint, "small_arrays": small_array_files(spec, tokens)}
    sparse = attributes.model_copy(update={**changes, "sealed": True})
    for key, content in small_files(sparse, tokens, {}).items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(content)
    return path


def _open_in_processes(path: Path, processes: int) -> Sequence[Opening]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.map(_open, [path] * processes, chunksize=1)


def _open(path: Path) -> Opening:
    process = psutil.Process()
    before = process.memory_info().rss
    times = []
    for _ in range(3):
        began = time.thread_time()
        cache = TeacherCache(path)
        times.append(time.thread_time() - began)
    chance = random.Random(1)
    tokens = [cache.tokens[chance.randrange(len(cache))] for _ in range(LOOKUPS)]
    finding = []
    for _ in range(5):
        began = time.thread_time()
        assert all(token in cache for token in tokens)
        finding.append(time.thread_time() - began)
    return Opening(
        open_ms=1e3 * statistics.median(times),
        grown_mb=(process.memory_info().rss - before) / 1e6,
        find_us=1e6 * min(finding) / LOOKUPS,
    )
