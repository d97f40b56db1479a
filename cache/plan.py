"""What a dump will cost, from a handful of frames, before anything is written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from cache.codec import Distortion
from cache.dump import DumpConfig
from cache.errors import StoreError
from cache.frames import Frames
from cache.probe import PreparedFrames, spec_of
from cache.record import stored_samples
from cache.shards import pack_chunk
from cache.spec import CacheSpec
from cache.store import StoredSample
from cache.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """One array of the store, for one sample."""

    name: str
    bytes: float
    float32_bytes: float
    sqnr_db: float | None
    """Of a layer's features, over the probed frames."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A dump's cost. Sizes are means over the probed frames; the time is that of one process without loader workers."""

    path: Path
    samples: int
    arrays: tuple[ArrayPlan, ...]
    files: int
    seconds_per_sample: float
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
                cure="Dump fewer layers or splits, use fewer bits, leave out head_maps, or choose another disk",
            )

    def table(self) -> Table:
        """The plan for a person."""
        hours = self.seconds_per_sample * self.samples / 3600
        title = (
            f"{self.path}: {self.samples} samples, {self.total_bytes / 1e9:,.2f} GB in {self.files:,} files "
            f"({self.free_bytes / 1e9:,.1f} GB free), at most {hours:.1f} hours"
        )
        table = Table(title=title, title_justify="left")
        for column in ("array", "bytes a sample", "as float32", "smaller by", "SQNR", "GB together"):
            table.add_column(column, overflow="fold")
        for array in self.arrays:
            ratio = "" if array.sqnr_db is None else f"{array.sqnr_db:.1f} dB"
            smaller = f"{array.float32_bytes / array.bytes:.1f} x"
            sizes = f"{array.bytes:,.0f}", f"{array.float32_bytes:,.0f}"
            table.add_row(array.name, *sizes, smaller, ratio, f"{array.bytes * self.samples / 1e9:,.3f}")
        return table


def plan(config: DumpConfig, frames: Frames, teacher: Teacher, out: Path, probes: int = 4) -> Plan:
    """Run the teacher on some frames, spread evenly, and measure what they would take.

    Raises:
        TeacherError, ConfigError, DataError: see `cache.dump.dump`.
    """
    spec = spec_of(config.layers, config.head_maps, frames, teacher)
    prepared = PreparedFrames.of(frames, teacher)
    positions = np.unique(np.linspace(0, len(frames) - 1, min(probes, len(frames))).astype(int)).tolist()
    began = time.monotonic()
    samples = []
    for position in positions:
        with torch.inference_mode():
            samples += stored_samples(teacher([prepared[position]]), (frames.tokens[position],), spec)
    arrays = _arrays(samples, spec, config.zstd_level)
    seconds = (time.monotonic() - began) / len(samples)
    shards = -(-len(frames) // config.samples_per_shard)
    return Plan(
        path=Path(out),
        samples=len(frames),
        arrays=arrays,
        files=shards * (len(arrays) + 1),
        seconds_per_sample=seconds,
        free_bytes=_free_bytes(Path(out)),
    )


def _arrays(samples: list[StoredSample], spec: CacheSpec, zstd_level: int) -> tuple[ArrayPlan, ...]:
    plans = []
    for name, values in samples[0].arrays.items():
        sizes = [len(pack_chunk(view, zstd_level)) for sample in samples for view in sample.arrays[name]]
        layer = name.removeprefix("features/")
        loss = sum((s.distortion.get(layer, Distortion()) for s in samples), start=Distortion())
        plans.append(
            ArrayPlan(
                name=name,
                bytes=sum(sizes) / len(samples) + 16 * len(spec.views),  # and its place in the shard's index
                float32_bytes=4.0 * values.size * (8 if name == "canvas_mask" else 1),
                sqnr_db=loss.sqnr_db if loss.values else None,
            )
        )
    return tuple(plans)


def _free_bytes(path: Path) -> int:
    """On the disk where `path` is or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
