"""`unidistill_points`: nine points of each box, and their relations (docs/objective.md, equation 21; UniDistill)."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.sampling import even_parts, points_in_boxes
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights

Features = Float[Tensor, "B M Q C"]
Inside = Bool[Tensor, "B M Q"]


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
        boxes = predictions.boxes
        at = self.at_points(features, points_in_boxes(boxes, even_parts(3, 3, boxes.device)))
        inside = at.inside & (boxes[..., 3:5] > 0).all(dim=-1, keepdim=True)
        weights = {name: self.weight(f"{name}_weight") for name in DISTANCES}
        return {
            name: weights[name] * distance(at.student, at.teacher, inside)
            for name, distance in DISTANCES.items()
            if weights[name]
        }


def feature_distance(student: Features, teacher: Features, inside: Inside) -> Scalar:
    """Mean absolute difference over the channels of all points inside; 0 for none."""
    error = (student - teacher).abs().mean(dim=-1) * inside
    return error.sum() / inside.sum().clamp(min=1)


def relation_distance(student: Features, teacher: Features, inside: Inside) -> Scalar:
    """Mean absolute difference of the cosine similarities of each box's points, over its pairs of points inside."""
    ours, theirs = (F.normalize(maps, dim=-1, eps=1e-4) for maps in (student, teacher))
    pairs = inside[..., :, None] & inside[..., None, :]
    return ((ours @ ours.mT - theirs @ theirs.mT).abs() * pairs).sum() / pairs.sum().clamp(min=1)


DISTANCES = {"feature": feature_distance, "relation": relation_distance}
