"""How near one map of features is to another, by region, and what a BEV matrix did."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.geometry.views import REFLECTIONS
from student.distill.boxes import first_box, is_inside
from student.distill.regions import fit, strongest

REGIONS = ("foreground", "false positives", "background")


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """Sums over cells and channels, so that those of two samples add up to that of both.

    signal: of the squares of the reference. other: of the squares of what is compared with it. product: of the
    products of both. noise: of the squares of their differences.
    """

    cells: int = 0
    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    def __add__(self, more: "Closeness") -> "Closeness":
        return Closeness(**{name: value + getattr(more, name) for name, value in vars(self).items()})

    @property
    def relative_error(self) -> float:
        """Length of the difference over the length of the reference; NaN where there is no reference."""
        return float(np.sqrt(self.noise / self.signal)) if self.signal else float("nan")

    @property
    def cosine(self) -> float:
        """Of the angle between both; NaN where one of them is 0."""
        lengths = np.sqrt(self.signal * self.other)
        return float(self.product / lengths) if lengths else float("nan")


def closeness(
    found: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"], cells: Bool[Tensor, "B H W"]
) -> Closeness:
    """Over the cells that are marked, in float64."""
    ours, theirs = (features.movedim(1, -1)[cells].double() for features in (found, reference))
    sums = ((a * b).sum().item() for a, b in ((theirs, theirs), (ours, ours), (ours, theirs)))
    signal, other, product = sums
    noise = (ours - theirs).square().sum().item()
    return Closeness(cells=len(ours), signal=signal, other=other, product=product, noise=noise)


def total(parts: list[Closeness]) -> Closeness:
    """All of them together."""
    return reduce(Closeness.__add__, parts, Closeness())


def regions_of(
    heatmap: Float[Tensor, "B K _ _"], boxes: Float[Tensor, "B M D"], grid: BevGrid, threshold: float = 0.1
) -> dict[str, Bool[Tensor, "B H W"]]:
    """The cells inside boxes, those outside that a teacher's heatmap takes for an object, and the rest.

    Args:
        heatmap: probabilities, over the range of `grid`.
        grid: of the features whose cells are sorted.
    """
    foreground = is_inside(first_box(boxes, grid))
    false_positives = ~foreground & (fit(strongest(heatmap), grid.shape) > threshold)
    return dict(zip(REGIONS, (foreground, false_positives, ~foreground & ~false_positives), strict=True))


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What a BEV matrix does: rotate (counter-clockwise), scale, then mirror; `flip` is a name of REFLECTIONS."""

    rotation_deg: float
    scale: float
    flip: str

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "4 4"]) -> "Motion":
        """The one of the four reflections that leaves the smallest rotation."""
        linear = matrix[:2, :2].astype(np.float64)
        scale = float(np.sqrt(abs(np.linalg.det(linear))))
        found = []
        for name, signs in REFLECTIONS.items():
            turned = np.diag(signs) @ linear / scale
            if np.linalg.det(turned) > 0:
                degrees = float(np.rad2deg(np.arctan2(turned[1, 0], turned[0, 0])))
                found.append(cls(rotation_deg=degrees, scale=scale, flip=name))
        return min(found, key=lambda motion: abs(motion.rotation_deg))
