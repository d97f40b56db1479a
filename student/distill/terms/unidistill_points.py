"""`unidistill_points`: nine points of each box, and their relations (docs/objective.md, equation 21; UniDistill)."""

from typing import Literal

from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.sampling import Points, by_autograd, even_parts
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights

Inside = Bool[Tensor, "M Q"]


class UnidistillPointsTerm(PairTerm):
    """`unidistill_points`: a box's centre, corners and middles of sides (UniDistill, Zhou et al., CVPR 2023).

    A part with a weight of 0 is not computed.
    """

    kind: Literal["unidistill_points"]
    feature_weight: Weights = 100.0
    """Of the difference of the features at the points."""
    relation_weight: Weights = 40.0
    """Of the difference of the 9 x 9 cosine similarities of a box's points."""


class UnidistillPointsLoss(PairLoss[UnidistillPointsTerm]):
    """`unidistill_points` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        weights = {name: self.weight(f"{name}_weight") for name in SUMS}
        chosen = [name for name, weight in weights.items() if weight]
        if not chosen:
            return {}
        boxes = predictions.boxes
        sums = by_autograd(lambda *points: tuple(SUMS[name](*points) for name in chosen))
        found, inside = self.over_points(sums, features, boxes, even_parts(3, 3, boxes.device))
        counts = {"feature": inside.sum(), "relation": pairs_of(inside).sum()}
        return {
            name: weights[name] * value / counts[name].clamp(min=1) for name, value in zip(chosen, found, strict=True)
        }


def feature_distance(student: Points, teacher: Points, inside: Inside) -> Scalar:
    """Absolute difference, mean over channels, summed over all points inside."""
    return ((student - teacher).abs().mean(dim=-1) * inside).sum()


def relation_distance(student: Points, teacher: Points, inside: Inside) -> Scalar:
    """Absolute difference of the cosine similarities of each box's points, summed over its pairs of points inside."""
    ours, theirs = (F.normalize(maps, dim=-1, eps=1e-4) for maps in (student, teacher))
    return ((ours @ ours.mT - theirs @ theirs.mT).abs() * pairs_of(inside)).sum()


def pairs_of(inside: Bool[Tensor, "*n Q"]) -> Bool[Tensor, "*n Q Q"]:
    """The pairs of points that are both inside."""
    return inside[..., :, None] & inside[..., None, :]


SUMS = {"feature": feature_distance, "relation": relation_distance}
