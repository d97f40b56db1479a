"""Similarity of feature maps by region: relative error and cosine, as sums that add up over samples."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.boxes import first_box
from student.distill.regions import max_over_classes, resize_map

REGIONS = ("foreground", "false positives", "background")


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Sums over cells and channels of a map x and a reference r; those of two samples add up.

    signal: sum of r^2. other: sum of x^2. product: sum of x r. noise: sum of (x - r)^2.
    """

    cells: int = 0
    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    def __add__(self, more: "Similarity") -> "Similarity":
        return Similarity(**{name: value + getattr(more, name) for name, value in vars(self).items()})

    @property
    def relative_error(self) -> float:
        """|x - r| / |r|; NaN where r is 0."""
        return float(np.sqrt(self.noise / self.signal)) if self.signal else float("nan")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between x and r; NaN where one of them is 0."""
        lengths = np.sqrt(self.signal * self.other)
        return float(self.product / lengths) if lengths else float("nan")


def similarity(
    found: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"], cells: Bool[Tensor, "B H W"]
) -> Similarity:
    """Similarity over the cells of a mask, in float64."""
    ours, theirs = (features.movedim(1, -1)[cells].double() for features in (found, reference))
    sums = ((a * b).sum().item() for a, b in ((theirs, theirs), (ours, ours), (ours, theirs)))
    signal, other, product = sums
    noise = (ours - theirs).square().sum().item()
    return Similarity(cells=len(ours), signal=signal, other=other, product=product, noise=noise)


def total(parts: list[Similarity]) -> Similarity:
    """Sum over samples."""
    return reduce(Similarity.__add__, parts, Similarity())


def split_regions(
    heatmap: Float[Tensor, "B K _ _"], boxes: Float[Tensor, "B M D"], grid: BevGrid, threshold: float = 0.1
) -> dict[str, Bool[Tensor, "B H W"]]:
    """Masks of foreground (inside boxes), false positives (outside, heatmap above the threshold) and background.

    Args:
        heatmap: probabilities, over the range of `grid`.
        grid: of the features.
    """
    foreground = first_box(boxes, grid) >= 0
    false_positives = ~foreground & (resize_map(max_over_classes(heatmap), grid.shape) > threshold)
    return dict(zip(REGIONS, (foreground, false_positives, ~foreground & ~false_positives), strict=True))
