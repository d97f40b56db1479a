"""Estimate a dump's size and time from a few frames, before anything is written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.dumping.config import DumpConfig
from cache.dumping.encode import join_views
from cache.dumping.setup import DumpSetup
from cache.errors import StoreError
from cache.nuscenes.frames import Frames
from cache.store.distortion import Distortion
from cache.store.format import pack_chunk
from cache.store.layout import SampleArray, StoredSample, sample_arrays
from cache.teacher.base import Teacher


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """One array of the store, for one sample."""

    name: str
    bytes: float
    float32_bytes: float
    sqnr_db: float | None
    """Of a layer's features, over the probed frames."""


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """One view's share of a sample."""

    name: str
    bytes: float
    seconds: float
    """An equal share of loading, the teacher and encoding."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A dump's cost. Sizes are means over the probed frames; the time is that of one process without loader workers."""

    path: Path
    samples: int
    arrays: tuple[ArrayPlan, ...]
    views: tuple[ViewPlan, ...]
    files: int
    seconds_per_sample: float
    """Of all views, and their compression."""
    free_bytes: int

    @property
    def bytes_per_sample(self) -> float:
        """Of all arrays."""
        return sum(array.bytes for array in self.arrays)

    @property
    def total_bytes(self) -> float:
        """Of all samples."""
        return self.bytes_per_sample * self.samples

    def require_room(self) -> None:
        """Check that the store fits on its disk.

        Raises:
            StoreError: it does not.
        """
        if self.total_bytes > self.free_bytes:
            raise StoreError(
                "the store will not fit on its disk",
                where=self.path,
                got=f"{self.free_bytes / 1e9:,.1f} GB free",
                expected=f"{self.total_bytes / 1e9:,.1f} GB for {self.samples} samples",
                cure="Dump fewer views, layers or splits, use fewer bits, leave out head_maps, or choose another disk",
            )


def plan(config: DumpConfig, frames: Frames, teacher: Teacher, out: Path, probes: int = 4) -> Plan:
    """Prepare, encode and compress some frames, spread evenly, and measure their cost; nothing is written.

    Raises:
        TeacherError, ConfigError, DataError: see `cache.dumping.run.dump`.
    """
    setup = DumpSetup.of(config, frames, teacher)
    positions = np.unique(np.linspace(0, len(frames) - 1, min(probes, len(frames))).astype(int)).tolist()
    began = time.monotonic()
    samples, seconds = _encode_timed(setup, positions)
    arrays = sample_arrays(setup.spec)
    sizes = {name: _chunk_bytes(array, samples, config.zstd_level) for name, array in arrays.items()}
    elapsed = time.monotonic() - began
    return Plan(
        path=Path(out),
        samples=len(frames),
        arrays=tuple(_array_plan(array, samples, sizes[name]) for name, array in arrays.items()),
        views=tuple(
            ViewPlan(
                name=name, bytes=sum(sizes[a.name][view] for a in arrays.values() if a.views), seconds=seconds[view]
            )
            for view, name in enumerate(setup.spec.views)
        ),
        files=len(config.layout.shards(len(frames))) * (len(sizes) + 1),
        seconds_per_sample=elapsed / len(samples),
        free_bytes=_free_bytes(Path(out)),
    )


def _encode_timed(setup: DumpSetup, positions: list[int]) -> tuple[list[StoredSample], list[float]]:
    """The frames as they would be stored, and each view's seconds for one frame, with its share of loading."""
    began = time.monotonic()
    frames = [setup.prepared[position] for position in positions]
    loading_s = (time.monotonic() - began) / len(setup.spec.views)
    views, seconds = [], []
    for view in range(len(setup.spec.views)):
        began = time.monotonic()
        views.append([sample for frame in frames for sample in setup.encode_view([frame], view)])
        seconds.append((loading_s + time.monotonic() - began) / len(positions))
    return join_views(views, [frame.depth for frame in frames]), seconds


def _chunk_bytes(array: SampleArray, samples: list[StoredSample], zstd_level: int) -> list[float]:
    """Mean bytes of each chunk of a sample in an array, with its entry in the shard's index."""
    chunks = [sample.arrays[array.name].reshape(array.chunks, *array.shape) for sample in samples]
    return np.mean([[len(pack_chunk(c, zstd_level)) + 16 for c in of] for of in chunks], axis=0).tolist()


def _array_plan(array: SampleArray, samples: list[StoredSample], sizes: list[float]) -> ArrayPlan:
    loss = sum((sample.distortion[array.layer] for sample in samples if array.layer), start=Distortion())
    return ArrayPlan(
        name=array.name,
        bytes=sum(sizes),
        float32_bytes=array.float32_bytes,
        sqnr_db=loss.sqnr_db if loss.values else None,
    )


def _free_bytes(path: Path) -> int:
    """On the disk where `path` is or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
