"""`all`: mean difference over all cells (docs/objective.md, equation 10)."""

from typing import Literal

from student.distill.feature_stats import FeatureStats
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class AllTerm(PairTerm):
    """`all`: the mean absolute (p = 1) or squared (p = 2) difference over all cells."""

    kind: Literal["all"]
    p: Literal[1, 2] = 2
    weight: Weights = 1.0


class AllLoss(PairLoss[AllTerm]):
    """`all` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        stats = features.stats("mse" if self.config.p == 2 else "l1")
        return {"feature": self.weight() * mean_over_elements(stats)}


def mean_over_elements(stats: FeatureStats) -> Scalar:
    """Mean of the criterion over all elements."""
    return stats.error.sum() / (stats.cells.sum() * stats.channels)
