"""Statistics of a store's layers over some of its samples, and the expected quality of each sample."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from cache.store.codec import Encoded
from cache.store.distortion import expected_sqnr_db
from cache.store.reader import TeacherCache

KEPT_VALUES = 20_000
"""Of each sample and layer, evenly spaced, for the histogram of values."""


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Statistics of a layer's decoded values."""

    mean: float
    std: float
    largest: float
    """Largest absolute value."""
    zeros: float
    """Fraction of values that are exactly 0."""


@dataclass(kw_only=True)
class LayerCounts:
    """Running counts of a layer's decoded values.

    kept: an evenly spaced subset of each sample's values.
    codes: how many values have each code, from -128 (signed) or 0 (unsigned) on; all 0 for float16.
    """

    count: int = 0
    zeros: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    kept: list[Float[np.ndarray, "_"]] = field(default_factory=list)
    codes: Int[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(256, np.int64))

    def add(self, encoded: Encoded) -> None:
        """Add a sample's values."""
        values = encoded.decode().flatten()
        self.count += values.numel()
        self.zeros += int((values == 0).sum())
        self.total += values.sum(dtype=torch.float64).item()
        self.squares += values.double().square().sum().item()
        self.largest = max(self.largest, values.abs().max().item())
        self.kept.append(values[:: -(-values.numel() // KEPT_VALUES)].numpy())
        if encoded.codec.kind != "float16":
            first = 128 if encoded.codec.kind == "signed" else 0
            self.codes += torch.bincount(encoded.values.flatten().long() + first, minlength=256).numpy()

    @property
    def statistics(self) -> LayerStatistics:
        """Mean, sample standard deviation, largest absolute value and fraction of zeros."""
        mean = self.total / self.count
        return LayerStatistics(
            mean=mean,
            std=math.sqrt(max(0.0, self.squares - self.count * mean**2) / max(1, self.count - 1)),
            largest=self.largest,
            zeros=self.zeros / self.count,
        )


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """The expected ratio of signal to rounding noise of each layer of a sample."""

    token: str
    sqnr_db: dict[str, float]

    @property
    def lowest_db(self) -> float:
        """The lowest ratio of all layers."""
        return min(self.sqnr_db.values(), default=math.inf)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Counts of each layer and the expected quality of each sample, over some samples of a store."""

    layers: dict[str, LayerCounts]
    samples: tuple[SampleQuality, ...]

    def worst(self, count: int) -> tuple[SampleQuality, ...]:
        """The samples with the lowest ratios, lowest first."""
        return tuple(sorted(self.samples, key=lambda sample: sample.lowest_db)[:count])

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """By layer."""
        return {name: counts.statistics for name, counts in self.layers.items()}


def spread(tokens: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` tokens, evenly spaced from the first to the last."""
    places = np.unique(np.linspace(0, len(tokens) - 1, min(count, len(tokens))).round().astype(int))
    return tuple(tokens[int(place)] for place in places)


def survey(cache: TeacherCache, samples: int = 8, progress: Callable[[int, int], None] = lambda *_: None) -> Survey:
    """Statistics of each layer over samples spread evenly through the store, and each one's expected quality.

    Args:
        progress: called with (done, total) samples.
    """
    layers = {layer.name: LayerCounts() for layer in cache.spec.layers}
    qualities = []
    chosen = spread(cache.tokens, samples)
    for done, token in enumerate(chosen, start=1):
        features = cache[token].features
        for name, encoded in features.items():
            layers[name].add(encoded)
        ratios = {name: expected_sqnr_db(encoded).min().item() for name, encoded in features.items()}
        qualities.append(SampleQuality(token=token, sqnr_db=ratios))
        progress(done, len(chosen))
    return Survey(layers=layers if qualities else {}, samples=tuple(qualities))
