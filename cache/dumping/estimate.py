"""What a dump will cost, from a handful of frames, before anything is written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache.dumping.encode import joined_views, stored_samples
from cache.dumping.run import DumpConfig
from cache.dumping.spec_builder import DumpedFrames, PreparedFrames, spec_of
from cache.errors import StoreError
from cache.geometry.views import sample_label
from cache.nuscenes.frames import Frames
from cache.spec import CacheSpec
from cache.store.codec import Distortion
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
    """Loading, the teacher, encoding."""


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
        """Insist that the store fits on its disk.

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
    """Run the teacher on some frames, spread evenly, and measure what they would take.

    Raises:
        TeacherError, ConfigError, DataError: see `cache.dumping.run.dump`.
    """
    spec = spec_of(config.layers, config.head_maps, config.views, config.depth, frames, teacher)
    positions = np.unique(np.linspace(0, len(frames) - 1, min(probes, len(frames))).astype(int)).tolist()
    began = time.monotonic()
    samples, seconds = _probed(config, frames, teacher, positions, spec)
    arrays = sample_arrays(spec)
    sizes = _sizes(samples, arrays, config.zstd_level)
    elapsed = time.monotonic() - began
    shards = -(-len(frames) // config.samples_per_shard)
    return Plan(
        path=Path(out),
        samples=len(frames),
        arrays=_arrays(samples, arrays, sizes),
        views=tuple(
            ViewPlan(
                name=name, bytes=sum(sizes[a.name][view] for a in arrays.values() if a.views), seconds=seconds[view]
            )
            for view, name in enumerate(spec.views)
        ),
        files=shards * (len(sizes) + 1),
        seconds_per_sample=elapsed / len(samples),
        free_bytes=_free_bytes(Path(out)),
    )


def _probed(
    config: DumpConfig, frames: Frames, teacher: Teacher, positions: list[int], spec: CacheSpec
) -> tuple[list[StoredSample], list[float]]:
    """The frames as they would be stored, and the seconds that each view took for one frame."""
    dumped = DumpedFrames(prepared=PreparedFrames.of(frames, teacher, config.views), depth=spec.depth)
    views, seconds, codes = [], [], []
    for view, name in enumerate(spec.views):
        began = time.monotonic()
        samples = []
        for position in positions:
            inputs, seen = dumped[position * len(spec.views) + view]
            with torch.inference_mode():
                samples += stored_samples(teacher([inputs]), (sample_label(frames.tokens[position], name),), spec)
            codes.append(None if seen is None else seen.numpy())
        views.append(samples)
        seconds.append((time.monotonic() - began) / len(positions))
    return joined_views(views, codes[: len(positions)]), seconds


def _sizes(samples: list[StoredSample], arrays: dict[str, SampleArray], zstd_level: int) -> dict[str, list[float]]:
    """Bytes of each array's chunks for one sample, each with its place in the shard's index."""
    sizes = {}
    for name, array in arrays.items():
        chunks = [sample.arrays[name].reshape(array.chunks, *array.shape) for sample in samples]
        sizes[name] = np.mean([[len(pack_chunk(c, zstd_level)) + 16 for c in of] for of in chunks], axis=0).tolist()
    return sizes


def _arrays(
    samples: list[StoredSample], arrays: dict[str, SampleArray], sizes: dict[str, list[float]]
) -> tuple[ArrayPlan, ...]:
    plans = []
    for name, array in arrays.items():
        loss = sum((s.distortion[array.layer] for s in samples if array.layer), start=Distortion())
        plans.append(
            ArrayPlan(
                name=name,
                bytes=sum(sizes[name]),
                float32_bytes=array.float32_bytes,
                sqnr_db=loss.sqnr_db if loss.values else None,
            )
        )
    return tuple(plans)


def _free_bytes(path: Path) -> int:
    """On the disk where `path` is or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
