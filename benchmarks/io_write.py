"""The dump's speed beside that of the teacher alone."""

import shutil
import time
from pathlib import Path

import torch

from benchmarks.tables import ratio, show, spread
from cache.dumping.config import DumpConfig
from cache.dumping.prepared import PreparedFrames
from cache.dumping.run import DumpProgress, dump
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.teacher.base import Teacher


def report(config: DumpConfig, frames: Frames, teacher: Teacher, folder: Path, turns: int) -> Path:
    """Print the rates of both, taking turns; returns the last dump."""
    alone, dumping = [], []
    store = folder / "dumped.zarr"
    teacher_alone(config, frames, teacher, batches=2)  # to warm up
    for _ in range(turns):
        alone.append(teacher_alone(config, frames, teacher))
        shutil.rmtree(store, ignore_errors=True)
        dumping.append(dump_rate(config, frames, teacher, store))
    rows = [
        ("teacher alone", spread(alone), ""),
        (f"dump of {', '.join(config.layers)}", spread(dumping), ratio(dumping, alone)),
    ]
    title = f"write: {len(frames)} frames, batches of {config.batch_size}, {config.workers} loader worker"
    show(title, ("", "frames a second", "of the teacher alone"), rows)
    return store


def teacher_alone(config: DumpConfig, frames: Frames, teacher: Teacher, batches: int | None = None) -> float:
    """Frames a second, from the loader's start to the last output."""
    size = config.batch_size
    positions = [list(range(start, min(start + size, len(frames)))) for start in range(0, len(frames), size)][:batches]
    began = time.perf_counter()
    prepared = PreparedFrames.of(frames, teacher)
    loader = Loader(prepared, batch_sampler=positions, collate_fn=list, num_workers=config.workers)
    for prepared_frames in loader:
        with torch.inference_mode():
            teacher([frame.views[0] for frame in prepared_frames])
    return sum(map(len, positions)) / (time.perf_counter() - began)


def dump_rate(config: DumpConfig, frames: Frames, teacher: Teacher, store: Path) -> float:
    """Frames a second, from the loader's start until the last frame is written."""
    seen: list[DumpProgress] = []
    dump(config, frames, teacher, store, seen.append)
    return seen[-1].samples_per_s
