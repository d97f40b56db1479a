"""Reading with one thread beside the floor, and with two."""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import zstd
from torch import Tensor

from benchmarks.tables import ratio, show, spread
from cache.spec import DataIdentity
from cache.store.batch import TeacherBatch
from cache.store.distortion import Distortion
from cache.store.format import CHECKSUM_BYTES
from cache.store.layout import Layout, StoredSample
from cache.store.prefetch import prefetched
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter

BATCH = 4
IMAGES = 8
"""Of a square: four turns, each as it is and mirrored."""


def turned(cache: TeacherCache, path: Path, samples: int) -> Path:
    """A store of the head's features of `cache`, their quarter turns, and the mirror images of all, in shards of 32."""
    tokens = tuple(f"{position:032x}" for position in range(samples))
    data = DataIdentity.of("mirrored", ("all",), tokens)
    spec = cache.spec.model_copy(update={"data": data, "layers": (cache.spec.layer("head"),), "head_maps": {}})
    with StoreWriter(path, spec, tokens, head_weights={}, software={}, layout=Layout()) as writer:
        for shard in writer.missing_shards():
            opened = writer.shard(shard)
            for position in writer.positions(shard):
                opened.add([_turned(cache, position)])
            opened.commit()
        writer.seal()
    return path


def _turned(cache: TeacherCache, position: int) -> StoredSample:
    image, source = divmod(position, len(cache))
    sample = cache[cache.tokens[source]]
    head = sample.features["head"]

    def turn(maps: Tensor) -> Tensor:
        maps = maps.rot90(image % 4, (-2, -1))
        return (maps.flip(-1) if image % IMAGES >= 4 else maps).contiguous()

    arrays = {
        "features/head": turn(head.values).numpy(),
        "features/head_scale": head.scale.numpy(),
        "heatmap": turn(sample.heatmap).numpy(),
        "canvas_mask": np.packbits(turn(sample.canvas_mask).numpy(), axis=-1),
    }
    return StoredSample(arrays=arrays, distortion={"head": Distortion(values=head.values.numel())})


def report(cache: TeacherCache, rounds: int) -> None:
    """Print the times of all, taking turns over the same batches in a random order."""
    order = random.Random(0).sample(list(cache.tokens), len(cache))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    buffers = cache.buffers(BATCH, ["head"])
    floor = Floor(cache, buffers)
    rows = _ZarrRows(zarr.open_group(cache.path, mode="r"), floor.names)
    row_of = {token: row for row, token in enumerate(cache.tokens)}
    ways: dict[str, Callable[[], None]] = {
        "floor": lambda: _each(batches, floor.read),
        "floor, features alone": lambda: _each(batches, partial(floor.read, names=("features/head",))),
        "this reader": lambda: _each(batches, partial(cache.read, out=buffers)),
        "zarr-python": lambda: _each(batches, lambda batch: [rows[row_of[token]] for token in batch]),
        "this reader, 1 thread ahead": lambda: _drain(cache, batches, threads=1),
        "this reader, 2 threads ahead": lambda: _drain(cache, batches, threads=2),
    }
    times = {name: Times() for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            times[name].add(way, len(cache), warm_up=turn == 0)
    bytes_read = floor.bytes / len(cache)
    lines = [(name, spread(t.wall), spread(t.process), ratio(t.wall, times["floor"].wall)) for name, t in times.items()]
    title = f"read: {len(cache)} samples from a warm page cache, {bytes_read / 1e6:.2f} MB each, ms a sample"
    show(title, ("", "wall", "process", "of the floor"), lines)


class Times:
    """Milliseconds a sample, by turn."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.process: list[float] = []

    def add(self, work: Callable[[], None], samples: int, warm_up: bool) -> None:
        """Time `work`."""
        wall, process = time.perf_counter(), time.process_time()
        work()
        if not warm_up:
            self.wall.append(1e3 * (time.perf_counter() - wall) / samples)
            self.process.append(1e3 * (time.process_time() - process) / samples)


class Floor:
    """What no reader of the same bytes can avoid: a pread and a decompression for each chunk, no check, files open."""

    def __init__(self, cache: TeacherCache, buffers: TeacherBatch) -> None:
        reader = cache.shards
        head = buffers.features["head"]
        packed = np.empty((BATCH, *reader.arrays["canvas_mask"].shape), np.uint8)
        self._out = {
            "features/head": head.values.numpy(),
            "features/head_scale": head.scale.numpy(),
            "heatmap": buffers.heatmap.numpy(),
            "canvas_mask": packed,
        }
        self.names, self.bytes = tuple(self._out), 0
        self._places: dict[tuple[str, str], tuple[int, int, int]] = {}
        for shard in cache.committed_shards():
            chunks = cache.chunks_of(shard)
            for name in self.names:
                file = os.open(cache.path / reader.arrays[name].key(shard), os.O_RDONLY)
                index = reader.index(name, shard)
                for chunk in chunks:
                    offset, size = index[reader.arrays[name].chunk_number(chunk.row, chunk.view)].tolist()
                    self._places[chunk.token, name] = file, offset, size - CHECKSUM_BYTES
                    self.bytes += size

    def read(self, tokens: Sequence[str], names: Sequence[str] | None = None) -> None:
        """Read into the buffers."""
        for row, token in enumerate(tokens):
            for name in names or self.names:
                file, offset, size = self._places[token, name]
                zstd.decompress(os.pread(file, size, offset), self._out[name][row])


class _ZarrRows:
    """The same arrays' rows by zarr-python's own indexing."""

    def __init__(self, group: zarr.Group, names: Sequence[str]) -> None:
        self._arrays: list[Any] = [group[name] for name in names]

    def __getitem__(self, row: int) -> list[Any]:
        return [array[row, 0] for array in self._arrays]


def _each(batches: Sequence[Sequence[str]], read: Callable[[Sequence[str]], object]) -> None:
    for batch in batches:
        read(batch)


def _drain(cache: TeacherCache, batches: Sequence[Sequence[str]], threads: int) -> None:
    for _ in prefetched(cache, batches, BATCH, layers=["head"], threads=threads):
        pass
