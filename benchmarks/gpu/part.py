"""What a part of `benchmarks.gpu` is: figures by name, one after the other."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.world import Sizes

Figure = float | int | str | bool | list | dict | None
Figures = Iterator[tuple[str, Figure]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a part runs, and how large its work is; `folder` is shared by all parts of a run."""

    device: str
    sizes: Sizes
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device to wait for."""
        return self.device == "cuda"

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a piece of work, from its start to the device's end of it."""

    median_s: float
    least_s: float
    greatest_s: float
    rounds: int

    def figures(self, name: str) -> Figures:
        """By name, in milliseconds."""
        yield f"{name} ms", 1e3 * self.median_s
        yield f"{name} ms, least and greatest", [1e3 * self.least_s, 1e3 * self.greatest_s]


def timed(job: Job, work: Callable[[], object], rounds: int, warm_up: int = 2) -> Timing:
    """The median of some rounds after others that are not counted."""
    seconds = []
    for turn in range(warm_up + rounds):
        job.synchronise()
        began = time.perf_counter()
        kept = work()
        job.synchronise()
        if turn >= warm_up:
            seconds.append(time.perf_counter() - began)
        del kept
    return Timing(median_s=statistics.median(seconds), least_s=min(seconds), greatest_s=max(seconds), rounds=rounds)
