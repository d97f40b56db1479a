"""`tigbev_features`: similarities within objects (docs/objective.md, equation 22; TiG-BEV)."""

from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.sampling import Points, even_parts
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights

Inside = Bool[Tensor, "M Q"]
Similarities = Float[Tensor, "M Q Q"]

EPS = 1e-24
"""Squared lengths of rows of similarities up to it are 0: features of 1e-6."""

BOXES = 8
"""At a time: 8 boxes of 64 points of 384 channels are 0.8 MB of float32."""


class TigbevFeaturesTerm(PairTerm):
    """`tigbev_features`: inter-keypoint and inter-channel similarities of the features in each box (TiG-BEV).

    Huang et al. 2022, inner-feature BEV distillation. A part with a weight of 0 is not computed.
    """

    weighs_cells = False
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
        config, boxes = self.config, predictions.boxes
        weights = {name: self.weight(f"{name}_weight") for name in ("keypoint", "channel")}
        chosen = [name for name, weight in weights.items() if weight]
        if not chosen:
            return {}
        parts = even_parts(config.points, config.points, boxes.device)
        sums = partial(similarity_sums, keypoints="keypoint" in chosen, channels="channel" in chosen)
        found, inside = self.over_points(sums, features, boxes, parts, config.enlarge_m)
        counts = {"keypoint": inside.sum(), "channel": found[-1].detach()}
        return {
            name: weights[name] * value / counts[name].clamp(min=1)
            for name, value in zip(chosen, found[: len(chosen)], strict=True)
        }


def similarity_sums(
    student: Points, teacher: Points, inside: Inside, keypoints: bool = True, channels: bool = True
) -> tuple[Float[Tensor, "n"], Float[Tensor, "g M Q C"]]:
    """Sums of `keypoint_distance` and `channel_distance`, with the latter's number, and their gradients by the student.

    A few boxes at a time, so that their features stay in a CPU's cache.
    """
    parts = [part for part, needed in ((keypoint_distance, keypoints), (channel_distance, channels)) if needed]
    gradients = student.new_empty(len(parts), *student.shape)
    size = BOXES if student.is_cpu else len(student)
    total = student.new_zeros(len(parts) + 1)
    for ours, theirs, *targets in zip(*(maps.split(size) for maps in (student, teacher, *gradients)), strict=True):
        grams = ours @ ours.mT, theirs @ theirs.mT
        sums = [part(ours, theirs, *grams, target) for part, target in zip(parts, targets, strict=True)]
        total += torch.stack([*(value for value, _ in sums), sums[-1][1]])
    return total, gradients


def keypoint_distance(
    student: Points, teacher: Points, gram: Similarities, teacher_gram: Similarities, gradient: Points
) -> tuple[Scalar, Scalar]:
    """Squared distance of the rows of Q x Q similarities, scaled to length 1, summed over all points; and 0.

    Args:
        gram, teacher_gram: K = F F^T of either side.
        gradient: the student's is written to it.
    """
    (ours, length), (theirs, _) = (unit_rows(matrix) for matrix in (gram, teacher_gram))
    # d |u - v|^2 / dK, where u is a row of K over its length: 2 (u (u v) - v) / length.
    slope = torch.addcmul(-theirs, ours, (ours * theirs).sum(dim=-1, keepdim=True)).mul_(2 / length)
    torch.bmm(slope + slope.mT, student, out=gradient)
    return (ours - theirs).square().sum(), gram.new_zeros(())


def channel_distance(
    student: Points, teacher: Points, gram: Similarities, teacher_gram: Similarities, gradient: Points
) -> tuple[Scalar, Scalar]:
    """Squared distance of the rows of C x C similarities F^T F, scaled to length 1, summed over channels.

    Channels that are 0 at all of a box's points, in student or teacher, are left out; the number of the others comes
    second. Of unit rows u and v the distance is 2 - 2 u v, and with Q points their products need Q x Q matrices, no
    C x C ones: row c of F^T F times row c of H^T H is f_c S h_c, with S = F H^T and f_c a column of F, and the squared
    lengths of the rows are f_c K f_c and h_c L h_c. Arguments as of `keypoint_distance`.
    """
    through_gram, through_cross = gram @ student, student @ teacher.mT @ teacher
    energy = (student * through_gram).sum(dim=1, keepdim=True)
    teacher_energy = (teacher * (teacher_gram @ teacher)).sum(dim=1, keepdim=True)
    known = (energy > EPS) & (teacher_energy > EPS)
    shares = [torch.where(known, lengths, 1.0).rsqrt() for lengths in (energy, teacher_energy)]
    share = shares[0] * shares[1] * known
    cosine = (student * through_cross).sum(dim=1, keepdim=True) * share
    # Of -2 cosine, by f_c S h_c and, halved since K has two sides, by f_c K f_c.
    by_product, by_energy = -2 * share, cosine / energy.clamp(min=EPS)
    torch.addcmul(through_gram * (2 * by_energy), through_cross, by_product, out=gradient)
    gradient.baddbmm_(student @ (student * by_energy).mT, student, alpha=2)
    gradient.baddbmm_(student @ (teacher * by_product).mT, teacher)
    return (2 * known - 2 * cosine).sum(), known.sum().to(cosine.dtype)


def unit_rows(matrix: Similarities) -> tuple[Similarities, Float[Tensor, "M Q 1"]]:
    """Rows over their lengths, and the lengths, at least that of EPS."""
    length = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True).clamp(min=EPS**0.5)
    return matrix / length, length
