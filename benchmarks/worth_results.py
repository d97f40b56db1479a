"""What a training of the study leaves: a line of results.jsonl."""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.average_precision import Band
from cache.config import Strict

BANDS: tuple[Band, ...] = ((0, 8), (8, 16), (16, 30))
"""Distances from the car, in metres; the corners of a square of 16 m are 23 m away."""

Key = tuple[str, str, str, int, int]


class Point(Strict):
    """A validation: a point of the learning curve."""

    epoch: int
    mean_ap: float
    nds: float


class Result(Strict):
    """A training that is done; its metrics are the last validation's.

    cpu_s: of the training with its validations, over all its processes.
    band_ap: mAP by distance from the car, in the order of BANDS.
    """

    variant: str
    detector: str
    arm: str
    epochs: int
    seed: int
    mean_ap: float
    nds: float
    errors: dict[str, float]
    class_ap: dict[str, float]
    band_ap: tuple[float, ...]
    curve: tuple[Point, ...]
    cpu_s: float
    seconds_per_step: float
    peak_memory_mb: float

    @property
    def key(self) -> Key:
        """What makes it another training."""
        return self.variant, self.detector, self.arm, self.epochs, self.seed


def results(out: Path) -> Iterator[Result]:
    """What is done, in the order in which it was."""
    file = out / "results.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        yield Result.parse(json.loads(line), file)
