"""`tigbev_features`: similarities within objects (docs/objective.md, equation 22; TiG-BEV)."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.sampling import even_parts, points_in_boxes
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights

Features = Float[Tensor, "B M Q C"]
Inside = Bool[Tensor, "B M Q"]

EPS = 1e-24
"""Squared lengths of rows of similarities up to it are 0: features of 1e-6."""


class TigbevFeaturesTerm(PairTerm):
    """`tigbev_features`: inter-keypoint and inter-channel similarities of the features in each box (TiG-BEV).

    Huang et al. 2022, inner-feature BEV distillation. A part with a weight of 0 is not computed.
    """

    kind: Literal["tigbev_features"]
    points: Annotated[int, Field(ge=2, le=64)] = 4
    """Keypoints along and across a box; the public configurations take 24, 36 times as many in all."""
    enlarge_m: Annotated[float, Field(ge=0)] = 1.6
    """Added to a box on each side."""
    keypoint_weight: Weights = 100.0
    channel_weight: Weights = 10.0


class TigbevFeaturesLoss(PairLoss[TigbevFeaturesTerm]):
    """`tigbev_features` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        boxes, config = predictions.boxes, self.config
        parts = even_parts(config.points, config.points, boxes.device)
        at = self.at_points(features, points_in_boxes(boxes, parts, config.enlarge_m))
        inside = at.inside & (boxes[..., 3:5] > 0).all(dim=-1, keepdim=True)
        student, teacher = (maps * inside[..., None] for maps in (at.student, at.teacher))
        grams = student @ student.mT, teacher @ teacher.mT
        weights = {name: self.weight(f"{name}_weight") for name in ("keypoint", "channel")}
        losses = {}
        if weights["keypoint"]:
            losses["keypoint"] = weights["keypoint"] * keypoint_distance(*grams, inside)
        if weights["channel"]:
            losses["channel"] = weights["channel"] * channel_distance(student, teacher, *grams)
        return losses


def keypoint_distance(student: Float[Tensor, "B M Q Q"], teacher: Float[Tensor, "B M Q Q"], inside: Inside) -> Scalar:
    """Squared distance of the rows of Q x Q similarities F F^T, scaled to length 1, over all keypoints inside."""
    ours, theirs = (F.normalize(grams, dim=-1, eps=EPS**0.5) for grams in (student, teacher))
    return (ours - theirs).square().sum() / inside.sum().clamp(min=1)


def channel_distance(
    student: Features, teacher: Features, grams: Float[Tensor, "B M Q Q"], teacher_grams: Float[Tensor, "B M Q Q"]
) -> Scalar:
    """Squared distance of the rows of C x C similarities F^T F, scaled to length 1, over the channels of all boxes.

    Channels that are 0 at all of a box's keypoints, in student or teacher, are left out. Of unit rows u and v the
    distance is 2 - 2 u v, and with Q keypoints the rows' products need Q x Q matrices, no C x C ones:
    row c of F^T F times row c of G^T G is f_c (F G^T) g_c.

    Args:
        grams, teacher_grams: F F^T of either side.
    """
    ours = (student * (grams @ student)).sum(dim=-2)
    theirs = (teacher * (teacher_grams @ teacher)).sum(dim=-2)
    products = (student * (student @ teacher.mT @ teacher)).sum(dim=-2)
    known = (ours > EPS) & (theirs > EPS)
    shares = (torch.where(known, lengths, 1.0).rsqrt() for lengths in (ours, theirs))
    cosines = products * next(shares) * next(shares)
    return ((2 - 2 * cosines) * known).sum() / known.sum().clamp(min=1)
