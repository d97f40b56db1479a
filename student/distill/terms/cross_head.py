"""`cross_head`: the teacher's head on the student's features (docs/objective.md, equation 26; DualDistill)."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from cache.errors import ConfigError
from student.distill.adapters import AdapterConfig
from student.distill.feature_stats import full_precision, mask_cells
from student.distill.gaussians import draw_heatmaps, focal_loss
from student.distill.head_maps import Cells, codes_at
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.predictions import BatchPredictions, clipped_sigmoid, in_order
from student.distill.regions import Region
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights
from student.distill.terms.box_response import CODE_WEIGHTS, code_distance, mean_by_task, object_weights


class CrossHeadTerm(PairTerm):
    """`cross_head`: the teacher's frozen head on the student's adapted features learns the teacher's own boxes.

    Cross-head response distillation (DualDistill, Kim et al., BMVC 2025; CrossKD, Wang et al., CVPR 2024).
    """

    weighs_cells = False
    kind: Literal["cross_head"]
    temperature: PositiveFloat = 0.1
    """Divides the logits of the teacher's heatmap before `threshold` is applied."""
    threshold: float = Field(0.1, gt=0, lt=1)
    """The teacher's peaks are boxes where their sharpened probability is above it."""
    peaks: PositiveInt = 100
    """Of the teacher's heatmap in a sample, at most."""
    heatmap_weight: Weights = 1.0
    box_weight: Weights = 0.25

    @property
    def least_probability(self) -> float:
        """The threshold before sharpening."""
        return 1 / (1 + math.exp(-self.temperature * math.log(self.threshold / (1 - self.threshold))))


class CrossHeadLoss(PairLoss[CrossHeadTerm]):
    """`cross_head` on a pair of the layers that the heads read."""

    code_weights: Float[Tensor, "10"]

    def __init__(self, config: CrossHeadTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        self.cache = pair.config.cache
        self.register_buffer("code_weights", torch.tensor(CODE_WEIGHTS), persistent=False)
        if (pair.config.teacher, pair.config.teacher_adapter) != ("head", AdapterConfig()):
            raise ConfigError(
                "cross_head needs the features that the teacher's head reads",
                where=f"distill.pairs, {pair.config.label}",
                got=f"teacher {pair.config.teacher}, teacher_adapter {pair.config.teacher_adapter.kind}",
                expected="teacher head, teacher_adapter identity",
                cure="Name such pairs in the term's `pairs`",
            )

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        config, teacher = self.config, predictions.boxes_of(self.cache)
        logits, maps = predictions.teacher_heads[self.cache](full_precision(features.adapted))
        objects, theirs = teacher.peaks(config.peaks, config.least_probability)
        probability = clipped_sigmoid(in_order(logits, predictions.teacher_order[self.cache]))
        channel = objects.channels.clamp(min=0)
        target = draw_heatmaps(objects.boxes, channel, probability.shape[1], self.grid)
        cells, task = Cells.of(objects.boxes[..., :2], self.grid), teacher.task_of_channel[channel]
        weight = object_weights(objects, cells.within(features.valid_mask), by_score=False)
        distance = code_distance(codes_at(maps, cells, task), theirs, self.code_weights)
        parts = predictions.task_slices
        return {
            "heatmap": self.weight("heatmap_weight") * heatmap_loss(probability, target, parts, features.valid_mask),
            "boxes": self.weight("box_weight") * mean_by_task(distance, weight, task, maps["reg"].shape[1]),
        }


def heatmap_loss(
    probability: Float[Tensor, "B K H W"],
    target: Float[Tensor, "B K H W"],
    parts: tuple[slice, ...],
    valid_mask: Region | None,
) -> Scalar:
    """Gaussian focal loss over the valid cells, each task's divided by its number of peaks, at least 1."""
    loss = mask_cells(focal_loss(probability, target), valid_mask).sum(dim=(0, 2, 3))
    peaks = mask_cells((target == 1).float(), valid_mask).sum(dim=(0, 2, 3))
    return torch.stack([loss[part].sum() / peaks[part].sum().clamp(min=1) for part in parts]).sum()
