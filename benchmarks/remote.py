"""An epoch of reading from an object store beside the local store: `python -m benchmarks.remote`.

A store of made-up features of a full-size teacher's shape (head, 384 x 128 x 128, two thirds zeros, 8 bits) is copied
to a server and read by a DataLoader in windows of shards, as `training.shuffle: shards` does: from the local store,
through a cold local cache, through a warm one, and through one of three windows of shards. Without --url the
server is moto's, on 127.0.0.1 and the same cores, with a proxy before it that delays each request by --latency-ms and
shares out --mbit between all connections.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.tables import show, spread
from cache.geometry.grid import BevGrid
from cache.nuscenes.loader import Loader
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from cache.store import mirror
from cache.store.codec import encode
from cache.store.copy import copy_store
from cache.store.distortion import measure
from cache.store.layout import Layout, StoredSample
from cache.store.reader import TeacherCache
from cache.store.remote import RemoteFolder
from cache.store.writer import StoreWriter
from student.data.samplers import ByShards, SampleDraw, SeededSampler, Shuffled

BATCH = 4
GRID = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
CLASSES = (("car", "truck"), ("pedestrian",))


FETCHED = multiprocessing.Value("q", 0)
"""Bytes of shards, by all processes."""


class CountedFolder(RemoteFolder):
    """Counts what is fetched."""

    def _block(self, key: str, start: int, end: int) -> bytes:
        data = super()._block(key, start, end)
        with FETCHED.get_lock():
            FETCHED.value += len(data)
        return data


@dataclass(frozen=True)
class Samples(Dataset):
    """A store's samples as a training asks for them."""

    cache: TeacherCache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, draw: SampleDraw) -> str:
        self.cache.fetch_ahead([self.cache.tokens[index] for index in draw.ahead])
        return self.cache.tokens[draw.index]


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(1)
    mirror.RemoteFolder = CountedFolder  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=options.folder) as name, _bucket(options) as url:
        folder = Path(name)
        store = make_store(folder / "teacher.zarr", options.samples, options.samples_per_shard)
        report = copy_store(store, url)
        size = f"{report.samples} samples of {report.bytes / report.samples / 1e6:.2f} MB in {report.shards} shards"
        print(f"{size}; copied to {url} in {report.seconds:.1f} s", flush=True)
        rows = list(_rows(store, url, folder, options))
    title = f"epoch: {options.samples} samples, batches of {BATCH}, {options.workers} workers, ms a sample"
    show(title, ("", "wall", "MB/s", "MB fetched"), rows)


def _rows(store: Path, url: str, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """One row for each way of reading; the ways take turns."""
    local, cold, warm, small = (folder / each for each in ("local", "cold", "warm", "small"))
    size = sum(path.stat().st_size for path in store.rglob("c.*"))
    three_windows = 1e-9 * (3.3 * options.window * options.samples_per_shard / options.samples * size + 2e6)

    def through(path: Path, limit_gb: float | None = None) -> Callable[[], TeacherCache]:
        return lambda: TeacherCache(url, local_cache=path, limit_gb=limit_gb)

    ways = {
        "local store": (local, lambda: TeacherCache(store)),
        "URL, cold local cache": (cold, through(cold)),
        "URL, warm local cache": (warm, through(warm)),
        f"URL, local cache of {three_windows * 1e3:.0f} MB": (small, through(small, three_windows)),
    }
    epoch(through(warm)(), options)
    times: dict[str, list[float]] = {name: [] for name in ways}
    fetched: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (path, opened) in ways.items():
            if path != warm:
                shutil.rmtree(path, ignore_errors=True)
            FETCHED.value = 0
            times[name].append(epoch(opened(), options))
            fetched[name].append(FETCHED.value / 1e6)
    for name, seconds in times.items():
        per_sample = [1e3 * each / options.samples for each in seconds]
        rate = [size / 1e6 / each for each in seconds]
        yield name, spread(per_sample), spread(rate), spread(fetched[name])


def epoch(cache: TeacherCache, options: argparse.Namespace) -> float:
    """The seconds of an epoch."""
    order = ByShards(
        order=Shuffled(frames=len(cache)), shard_of=cache.shards_of(cache.tokens[:]), window=options.window
    )
    loader = Loader(
        Samples(cache),
        batch_size=BATCH,
        sampler=SeededSampler(order, seed=0),
        collate_fn=cache.read,
        num_workers=options.workers,
    )
    began = time.perf_counter()
    for _ in loader:
        time.sleep(1e-3 * options.step_ms)
    return time.perf_counter() - began


def make_store(path: Path, samples: int, samples_per_shard: int) -> Path:
    """Features after a ReLU that are smooth over the grid, as a convolution's."""
    tokens = tuple(f"{position:032x}" for position in range(samples))
    spec = CacheSpec(
        teacher=TeacherIdentity(name="made-up", weights_sha256="0", config_sha256="0", tasks=CLASSES),
        data=DataIdentity.of("made-up", ("all",), tokens),
        points=PointPipeline(),
        layers=(LayerSpec(name="head", channels=384, grid=GRID, codec=CodecSpec()),),
        heatmap_grid=GRID,
        canvas_grid=GRID,
    )
    layout = Layout(samples_per_shard=samples_per_shard)
    with StoreWriter(path, spec, tokens, head_weights={}, software={}, layout=layout) as writer:
        for shard in writer.missing_shards():
            opened = writer.shard(shard)
            opened.add([_sample(spec, position) for position in writer.positions(shard)])
            opened.commit()
        writer.seal()
    return path


def _sample(spec: CacheSpec, seed: int) -> StoredSample:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 384, 32, 32, generator=random)
    values = (torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic") - 0.35).relu()
    encoded = encode(values, spec.layers[0].codec)
    arrays: dict[str, Any] = {
        "features/head": encoded.values.numpy(),
        "features/head_scale": encoded.scale.numpy(),
        "heatmap": np.zeros((1, 3, 128, 128), np.uint8),
        "canvas_mask": np.zeros((1, 128, 16), np.uint8),
    }
    return StoredSample(arrays=arrays, distortion={"head": measure(values, encoded)[0]})


@contextmanager
def _bucket(options: argparse.Namespace) -> Iterator[str]:
    """The URL of a place to copy to: --url, or a bucket of a server of our own."""
    if options.url is not None:
        yield options.url
        return
    import fsspec

    from tests.factories.object_store import serve

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = theirs, 1e-3 * options.latency_ms, options.mbit * 1e6 / 8
    server = context.Process(target=serve, args=arguments, daemon=True)
    server.start()
    fsspec.config.conf["s3"] = ours.recv()
    try:
        yield "s3://bucket/teacher.zarr"
    finally:
        server.terminate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an empty place in an object store, such as s3://bucket/teacher.zarr")
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--samples-per-shard", type=int, default=16)
    parser.add_argument("--window", type=int, default=2, help="shards whose samples are shuffled among each other")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=0, help="time that a training would take for a batch")
    parser.add_argument("--latency-ms", type=float, default=20, help="of our own server, for each request")
    parser.add_argument("--mbit", type=float, default=1000, help="a second, of our own server")
    parser.add_argument("--folder", type=Path, help="where to work")
    return parser.parse_args()


if __name__ == "__main__":
    main()
