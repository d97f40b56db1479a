"""`unidistill_points`: nine points of each box, and their relations (docs/objective.md, equation 21; UniDistill)."""

from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.sampling import Points, even_parts
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights

Inside = Bool[Tensor, "M Q"]

EPS = 1e-4
"""The least length of a point's features in its cosines."""


class UnidistillPointsTerm(PairTerm):
    """`unidistill_points`: a box's centre, corners and middles of sides (UniDistill, Zhou et al., CVPR 2023).

    A part with a weight of 0 is not computed.
    """

    weighs_cells = False
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

        def sums(*points: Tensor) -> tuple[Tensor, Tensor]:
            values, gradients = zip(*(SUMS[name](*points) for name in chosen), strict=True)
            return torch.stack(values), torch.stack(gradients)

        found, inside = self.over_points(sums, features, boxes, even_parts(3, 3, boxes.device))
        counts = {"feature": inside.sum(), "relation": pairs_of(inside).sum()}
        return {
            name: weights[name] * value / counts[name].clamp(min=1) for name, value in zip(chosen, found, strict=True)
        }


def feature_distance(student: Points, teacher: Points, inside: Inside) -> tuple[Scalar, Points]:
    """Absolute difference, mean over channels, summed over all points inside; and its gradient by the student."""
    difference, channels = (student - teacher) * inside[..., None], student.shape[-1]
    return difference.abs().sum() / channels, difference.sign() / channels


def relation_distance(student: Points, teacher: Points, inside: Inside) -> tuple[Scalar, Points]:
    """Absolute difference of the cosine similarities of each box's points, summed over its pairs of points inside.

    And its gradient by the student: with rows u = f / |f| and D the signs of the differences, that by u is 2 D U, of
    which only the part across u changes a direction.
    """
    length = torch.linalg.vector_norm(student, dim=-1, keepdim=True).clamp(min=EPS)
    ours, theirs = student / length, F.normalize(teacher, dim=-1, eps=EPS)
    difference = (ours @ ours.mT - theirs @ theirs.mT) * pairs_of(inside)
    slope = 2 * difference.sign() @ ours
    return difference.abs().sum(), (slope - ours * (slope * ours).sum(dim=-1, keepdim=True)) / length


def pairs_of(inside: Bool[Tensor, "*n Q"]) -> Bool[Tensor, "*n Q Q"]:
    """The pairs of points that are both inside."""
    return inside[..., :, None] & inside[..., None, :]


SUMS = {"feature": feature_distance, "relation": relation_distance}
