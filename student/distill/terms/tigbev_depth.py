"""`tigbev_depth`: depths within an object relative to each other (docs/objective.md, equation 24; TiG-BEV)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cache.errors import ConfigError
from student.distill.feature_stats import full_precision
from student.distill.predictions import BatchPredictions, StudentDepth
from student.distill.terms.base import DepthTerm, Losses, Scalar, Weight


class TigbevDepthTerm(DepthTerm):
    """`tigbev_depth`: inner-depth supervision (TiG-BEV, Huang et al. 2022)."""

    kind: Literal["tigbev_depth"]
    weight: Weight = 1.0


class TigbevDepthLoss(nn.Module):
    """`tigbev_depth` on a batch."""

    def __init__(self, config: TigbevDepthTerm) -> None:
        super().__init__()
        self.config = config

    def forward(self, predictions: BatchPredictions) -> Losses:
        depth = predictions.depth
        if depth is None:
            raise ConfigError(
                "tigbev_depth compares the student's depth, and there is none",
                where=f"distill.terms, {self.config.label}",
                cure="Use a BEVDepth student, or pass `depth` to the objective",
            )
        boxes = predictions.boxes
        of_box = first_box_around(depth.points_m.flatten(1, 3), boxes).view(depth.depth_m.shape)
        value = inner_depth(expected_depth(depth), depth.depth_m, of_box, boxes.shape[1])
        return {"inner": self.config.weight * value}


def expected_depth(depth: StudentDepth) -> Float[Tensor, "B N h w"]:
    """Mean over the bins' middles by their probabilities, in metres."""
    nearest, _, size = depth.bins_m
    probability = full_precision(depth.logits).softmax(dim=2)
    bins = torch.arange(probability.shape[2], device=probability.device, dtype=probability.dtype)
    return (probability * (nearest + (bins + 0.5) * size)[:, None, None]).sum(dim=2)


def first_box_around(points: Float[Tensor, "B P 3"], boxes: Float[Tensor, "B M D"]) -> Int[Tensor, "B P"]:
    """Index of the first box that contains a point; -1 where none does.

    Args:
        points: x, y, z in metres. boxes: x, y, z (bottom), dx, dy, dz in metres, yaw in radians, ...
    """
    x, y, z = (part[:, :, None] - boxes[:, None, :, axis] for axis, part in enumerate(points.unbind(-1)))
    length, width, height, yaw = boxes[:, None, :, 3:7].unbind(-1)
    ahead, left = x * yaw.cos() + y * yaw.sin(), y * yaw.cos() - x * yaw.sin()
    inside = (ahead.abs() < length / 2) & (left.abs() < width / 2) & (z > 0) & (z < height)
    count = boxes.shape[1]
    index = torch.where(inside, torch.arange(count, device=boxes.device), count)
    # One more box than there are: a batch may have none.
    first = torch.cat([index, index.new_full((*index.shape[:2], 1), count)], dim=-1).amin(dim=-1)
    return torch.where(first == count, -1, first)


def inner_depth(
    estimate: Float[Tensor, "B N h w"], depth_m: Float[Tensor, "B N h w"], of_box: Int[Tensor, "B N h w"], boxes: int
) -> Scalar:
    """Mean squared error, over all patches in boxes, of the depth relative to a reference patch of the same box.

    The reference of a box in a camera is its patch with the least error, the first of several; no gradient flows
    through its estimate.

    Args:
        of_box: index of the box in which a patch's LiDAR point lies; -1 for none.
        boxes: how many indices there are.
    """
    truth = depth_m.to(estimate.dtype)
    known = (of_box >= 0) & (depth_m > 0)
    planes = known.shape[0] * known.shape[1]
    estimate, truth, known, of_box = (maps.reshape(planes, -1) for maps in (estimate, truth, known, of_box))
    patches = known.shape[1]
    group = torch.where(known, of_box, boxes)  # one more for the patches in no box
    error = (estimate - truth).abs().detach()
    least = error.new_full((planes, boxes + 1), torch.inf).scatter_reduce(1, group, error, "amin")
    patch = torch.where(error == least.gather(1, group), torch.arange(patches, device=known.device), patches)
    first = patch.new_full((planes, boxes + 1), patches).scatter_reduce(1, group, patch, "amin")
    reference = first.gather(1, group).clamp(max=patches - 1)
    relative = estimate - estimate.detach().gather(1, reference)
    expected = truth - truth.gather(1, reference)
    return ((relative - expected).square() * known).sum() / known.sum().clamp(min=1)
