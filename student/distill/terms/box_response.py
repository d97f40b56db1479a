"""`box_response`: the head's maps where objects are (docs/objective.md, equation 25; UniDistill, LabelDistill)."""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from student.distill.feature_stats import mask_cells
from student.distill.head_maps import Cells, Objects, codes_at
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import HeatmapLoss, Losses, Probability, ResponseTerm, Scalar, Weight

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
"""CenterPoint's for nuScenes: velocities count a fifth."""

CodeWeights = Annotated[tuple[Weight, ...], Field(min_length=10, max_length=10)]


class BoxResponseTerm(ResponseTerm):
    """`box_response`: the boxes that student and teacher predict for the same objects.

    At the centres of the batch's boxes (LabelDistill, Kim et al., ECCV 2024), or at the teacher's peaks (BEVDistill's
    instances, Chen et al., ICLR 2023); with UniDistill's response on heatmaps beside it (Zhou et al., CVPR 2023).
    """

    kind: Literal["box_response"]
    at: Literal["boxes", "teacher"] = "boxes"
    peaks: PositiveInt = 100
    """Of the teacher's heatmap in a sample, at most."""
    threshold: Probability = 0.1
    """The teacher's peaks are above it."""
    score_weight: bool = False
    """Weigh the teacher's peaks by their probability."""
    code_weights: CodeWeights = CODE_WEIGHTS
    """Of x, y, z, log dx, log dy, log dz, sin yaw, cos yaw, vx, vy."""
    box_weight: Weight = 1.0
    heatmap_weight: Weight = 0.0
    """Of the heatmaps' maxima over classes, under the Gaussians of the batch's boxes; 0: not computed."""


class BoxResponseLoss(HeatmapLoss[BoxResponseTerm]):
    """`box_response` on a batch."""

    code_weights: Float[Tensor, "10"]

    def __init__(self, config: BoxResponseTerm) -> None:
        super().__init__(config)
        self.register_buffer("code_weights", torch.tensor(config.code_weights), persistent=False)

    def forward(self, predictions: BatchPredictions) -> Losses:
        config, cache = self.config, self.config.cache
        teacher, objects = predictions.boxes_of(cache), predictions.objects
        cells = Cells.of(objects.boxes[..., :2], predictions.grid)
        theirs, inside = teacher.at(objects.boxes[..., :2], objects.channels)
        if config.at == "teacher":
            objects, theirs = teacher.peaks(config.peaks, config.threshold)
            cells = Cells.of(objects.boxes[..., :2], predictions.grid)
            inside = torch.ones_like(cells.inside)
        task = predictions.task_of_channel[objects.channels.clamp(min=0)]
        weight = object_weights(objects, cells.inside & inside, config.at == "teacher" and config.score_weight)
        ours = codes_at(predictions.maps_of_student(config.label), cells, task)
        distance = code_distance(ours, theirs, self.code_weights)
        losses = {"boxes": config.box_weight * mean_by_task(distance, weight, task, len(predictions.task_slices))}
        if config.heatmap_weight:
            valid_mask = predictions.teachers[cache].valid_mask
            losses["heatmap"] = config.heatmap_weight * heatmap_distance(
                predictions.student_probability.amax(dim=1),
                predictions.teacher_probability(cache).amax(dim=1),
                mask_cells(predictions.truth_max, valid_mask),
            )
        return losses


def object_weights(objects: Objects, inside: Bool[Tensor, "B M"], by_score: bool) -> Float[Tensor, "B M"]:
    """1, or the score, of objects with a size and a class that lie inside; else 0."""
    known = inside & (objects.channels >= 0) & (objects.boxes[..., 3:5] > 0).all(dim=-1)
    return torch.where(known, objects.scores.float() if by_score else 1.0, 0.0)


def code_distance(
    student: Float[Tensor, "B M 10"], teacher: Float[Tensor, "B M 10"], weights: Float[Tensor, "10"]
) -> Float[Tensor, "B M"]:
    """Weighted absolute differences of the codes."""
    return ((student - teacher.to(student.dtype)).abs() * weights.to(student.dtype)).sum(dim=-1)


def mean_by_task(
    distance: Float[Tensor, "B M"], weight: Float[Tensor, "B M"], task: Int[Tensor, "B M"], tasks: int
) -> Scalar:
    """Sum over tasks of the weighted distances over the number of the task's objects of any weight."""
    counts = weight.new_zeros(tasks).scatter_add(0, task.flatten(), (weight > 0).to(weight.dtype).flatten())
    return (distance * (weight / counts.clamp(min=1)[task])).sum()


def heatmap_distance(
    student: Float[Tensor, "B H W"], teacher: Float[Tensor, "B H W"], weight: Float[Tensor, "B H W"]
) -> Scalar:
    """Mean absolute difference of two heatmaps by weight; 0 without any weight."""
    total = weight.sum()
    return ((student - teacher).abs() * weight).sum() / torch.where(total > 0, total, 1.0)
