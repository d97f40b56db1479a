"""Factors that make a recipe's weights mean the same for any teacher: `scale: auto`."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from student.distill.criteria import Criterion
from student.distill.feature_stats import FeatureStats

REFERENCE_CHANNELS = 384
REFERENCE_CELLS = 128 * 128
REFERENCE_CELL_M = 0.8
"""The layer `head` of the pillar CenterPoint that DistillBEV's weights were chosen for ..."""
REFERENCE_ACTIVATION = 1 / math.sqrt(2 * math.pi)
"""... and the mean of a unit normal variable after a ReLU, as batch norm with its first weights gives it."""

_POWERS: dict[Criterion, int] = {"mse": 2, "l1": 1, "smooth_l1": 1}
"""How a criterion grows with its argument; smooth_l1 far from 0."""


@dataclass(frozen=True, kw_only=True)
class AutoScale:
    """Factors on the sums of a pair, from its teacher's channels, cells and mean activation in a batch.

    A teacher of k times the channels, cells a side or activation has the same weighted losses, if its student errs by
    the same share of it: sums over channels or cells count as if there were as many as in the reference.

    Args:
        activation: mean of the teacher's |T| over valid cells and channels.
    """

    activation: Float[Tensor, ""]
    channels: int
    cells: Float[Tensor, ""]
    cell_m: float

    @classmethod
    def of(cls, stats: FeatureStats, cell_m: tuple[float, float]) -> "AutoScale":
        """The factors for a batch."""
        activation = stats.teacher_energy.sum() / (stats.cells.sum() * stats.channels)
        return cls(
            activation=activation.detach(),
            channels=stats.channels,
            cells=stats.cells.mean(),
            cell_m=math.sqrt(cell_m[0] * cell_m[1]),
        )

    @property
    def features(self) -> Float[Tensor, ""]:
        """Of features: the reference's activation over the teacher's; 1 for a teacher that is 0 everywhere."""
        known = self.activation > 0
        return torch.where(known, REFERENCE_ACTIVATION / torch.where(known, self.activation, 1.0), 1.0)

    def by_channels(self, criterion: Criterion) -> Float[Tensor, ""]:
        """Of a sum over channels."""
        return self.features ** _POWERS[criterion] * (REFERENCE_CHANNELS / self.channels)

    def by_cells(self, criterion: Criterion) -> Float[Tensor, ""]:
        """Of a sum over cells of means over channels."""
        return self.features ** _POWERS[criterion] * (REFERENCE_CELLS / self.cells)

    @property
    def foreground(self) -> float:
        """Of a sum over a box's cells, each times sqrt(cell / box): one side of the cells remains."""
        return self.cell_m / REFERENCE_CELL_M
