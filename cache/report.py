"""What a person sees of a store."""

from dataclasses import dataclass

import numpy as np

from cache.reader import TeacherCache
from cache.tables import Table


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Of a layer's decoded values in some samples."""

    mean: float
    std: float
    largest: float
    """Largest absolute value."""
    zeros: float
    """Fraction of values that are exactly 0."""


def statistics(cache: TeacherCache, samples: int = 8) -> dict[str, LayerStatistics]:
    """Statistics of each layer, over samples spread evenly through the store."""
    places = np.unique(np.linspace(0, len(cache) - 1, min(samples, len(cache))).astype(int))
    batch = cache.read([cache.tokens[int(place)] for place in places])
    found = {}
    for name, layer in batch.features.items():
        values = layer.decode()
        found[name] = LayerStatistics(
            mean=values.mean().item(),
            std=values.std().item(),
            largest=values.abs().max().item(),
            zeros=(values == 0).float().mean().item(),
        )
    return found


def statistics_table(found: dict[str, LayerStatistics]) -> Table:
    """The statistics as a table."""
    rows = [(name, *(f"{x:.4g}" for x in (s.mean, s.std, s.largest)), f"{s.zeros:.1%}") for name, s in found.items()]
    return Table(title="values", columns=("layer", "mean", "standard deviation", "largest", "zeros"), rows=tuple(rows))
