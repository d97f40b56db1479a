"""`fitnet`: FitNets' hint loss (Romero et al., ICLR 2015, equation 3; docs/objective.md, equation 16)."""

from typing import Literal

from student.distill.feature_stats import FeatureStats
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class FitnetTerm(PairTerm):
    """`fitnet`: half the squared distance of hint and guided layer, a sample (Romero et al. 2015, equation 3)."""

    kind: Literal["fitnet"]
    weight: Weights = 1.0


class FitnetLoss(PairLoss[FitnetTerm]):
    """`fitnet` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        return {"feature": self.weight() * half_squared_distance(features.stats("mse"))}


def half_squared_distance(stats: FeatureStats) -> Scalar:
    """Half the squared Euclidean distance, a sample."""
    return stats.error.sum() / (2 * len(stats.error))
