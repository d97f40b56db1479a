"""`heatmap_temperature`: softened heatmaps (Hinton et al. 2015, equation 1; docs/objective.md, equation 20)."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from student.distill.feature_stats import count_valid, full_precision, mask_cells
from student.distill.predictions import BatchPredictions
from student.distill.regions import CLIP, Region
from student.distill.terms.base import HeatmapLoss, HeatmapTerm, Losses, Scalar, Weight

Heatmap = Float[Tensor, "B K H W"]


class HeatmapTemperatureTerm(HeatmapTerm):
    """`heatmap_temperature`: softened heatmaps (Hinton et al. 2015, equation 1)."""

    kind: Literal["heatmap_temperature"]
    temperature: PositiveFloat = 2.0
    over: Literal["classes", "cells", "each"] = "classes"
    """Softmax over the classes of a cell (their relations), over the cells of a class, or a sigmoid of each."""
    weight: Weight = 1.0


class HeatmapTemperatureLoss(HeatmapLoss[HeatmapTemperatureTerm]):
    """`heatmap_temperature` on a batch."""

    def forward(self, predictions: BatchPredictions) -> Losses:
        config, valid_mask = self.config, predictions.teachers[self.config.cache].valid_mask
        student = full_precision(predictions.student_logits)
        teacher = predictions.teacher_probability(config.cache).logit()
        return {config.over: config.weight * SOFTENED[config.over](student, teacher, config.temperature, valid_mask)}


def softened_classes(
    student: Heatmap, teacher: Heatmap, temperature: float, valid_mask: Region | None = None
) -> Scalar:
    """Kullback-Leibler divergence from teacher to student of each cell's softened class distribution, times t^2.

    Cells are weighted by the teacher's largest probability: relations between classes matter where there are objects.

    Args:
        student, teacher: logits.
    """
    weight = mask_cells(teacher.amax(dim=1).sigmoid(), valid_mask)
    divergence = _divergence(student, teacher, temperature, dim=1)
    return (divergence * weight).sum() / weight.sum().clamp(min=CLIP) * temperature**2


def softened_cells(student: Heatmap, teacher: Heatmap, temperature: float, valid_mask: Region | None = None) -> Scalar:
    """The same over the cells of each class, for location rather than class; mean over classes."""
    if valid_mask is not None:
        # Low enough for a probability of 0, but finite: a sample without valid cells gives 0 and not NaN.
        lowest = -1e4 * temperature
        student, teacher = (torch.where(valid_mask[:, None], logits, lowest) for logits in (student, teacher))
    return _divergence(student.flatten(2), teacher.flatten(2), temperature, dim=2).mean() * temperature**2


def softened_each(student: Heatmap, teacher: Heatmap, temperature: float, valid_mask: Region | None = None) -> Scalar:
    """The same for each logit alone, with a softened sigmoid: sum over classes, mean over cells."""
    student, target = student / temperature, (teacher / temperature).sigmoid()
    entropy = F.binary_cross_entropy(target, target, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(student, target, reduction="none") - entropy
    return mask_cells(divergence, valid_mask).sum() / count_valid(student, valid_mask).sum() * temperature**2


SOFTENED = {"classes": softened_classes, "cells": softened_cells, "each": softened_each}


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    ours, theirs = (logits.div(temperature).log_softmax(dim=dim) for logits in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(dim=dim)
