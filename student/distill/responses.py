"""Terms on heatmaps: what the teacher answers, as a target for what the student answers."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from student.distill.criteria import CRITERIA
from student.distill.feature_stats import counted_cells, only
from student.distill.losses import mean_within
from student.distill.regions import CLIP, Regions
from student.distill.term_configs import Criterion

Heatmap = Float[Tensor, "B K H W"]
Region = Bool[Tensor, "B H W"]
Scalar = Float[Tensor, ""]


def gauss_focal(student: Heatmap, teacher: Heatmap, peaks: Float[Tensor, ""], inside: Region | None = None) -> Scalar:
    """`gauss_focal_heatmap`: the Gaussian focal loss (CornerNet, equation 1; alpha 2, gamma 4), summed, over the peaks.

    Args:
        student, teacher: probabilities between CLIP and 1 - CLIP. The target is never 1, so every cell pulls downwards,
            by (1 - teacher)^4: as published.
        peaks: the number of ground-truth peaks; below 1 it counts as 1.
        inside: the cells that count, here and in the other terms; left out, all.
    """
    loss = -torch.log1p(-student) * student**2 * (1 - teacher) ** 4
    return only(loss, inside).sum() / peaks.clamp(min=1)


def s2m2_heatmap(
    student: Heatmap, teacher: Heatmap, regions: Regions, criterion: Criterion, inside: Region | None = None
) -> tuple[Scalar, Scalar]:
    """`s2m2_ssd_heatmap`: difference of the strongest classes' probabilities in TP, and in FP and FN (S2M2-SSD).

    Both sides are masked in both regions; the public code leaves the teacher unmasked in the second.
    """
    error = CRITERIA[criterion](student.amax(dim=1) - teacher.amax(dim=1))
    wrong = regions.false_positive | regions.false_negative
    return mean_within(error, only(regions.true_positive, inside)), mean_within(error, only(wrong, inside))


def softened_classes(student: Heatmap, teacher: Heatmap, temperature: float, inside: Region | None = None) -> Scalar:
    """Kullback-Leibler divergence of the softened class distributions of each cell, times t^2 (Hinton et al. 2015).

    Cells are weighted by the teacher's strongest class, so that the relations between classes are learnt where there
    are objects, and not on the empty ground.

    Args:
        student, teacher: logits.
    """
    weight = only(teacher.amax(dim=1).sigmoid(), inside)
    divergence = _divergence(student, teacher, temperature, dim=1)
    return (divergence * weight).sum() / weight.sum().clamp(min=CLIP) * temperature**2


def softened_cells(student: Heatmap, teacher: Heatmap, temperature: float, inside: Region | None = None) -> Scalar:
    """The same over the cells of each class: where, rather than what; mean over classes."""
    if inside is not None:
        # Low enough for a probability of 0; not infinite, so that a sample without cells gives 0 and not NaN.
        lowest = -1e4 * temperature
        student, teacher = (torch.where(inside[:, None], logits, lowest) for logits in (student, teacher))
    return _divergence(student.flatten(2), teacher.flatten(2), temperature, dim=2).mean() * temperature**2


def softened_each(student: Heatmap, teacher: Heatmap, temperature: float, inside: Region | None = None) -> Scalar:
    """The same for each logit on its own, a softened sigmoid: sum over classes, mean over cells."""
    student, target = student / temperature, (teacher / temperature).sigmoid()
    entropy = F.binary_cross_entropy(target, target, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(student, target, reduction="none") - entropy
    return only(divergence, inside).sum() / counted_cells(student, inside).sum() * temperature**2


SOFTENED = {"classes": softened_classes, "cells": softened_cells, "each": softened_each}


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    ours, theirs = (logits.div(temperature).log_softmax(dim=dim) for logits in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(dim=dim)


def clipped(logits: Heatmap) -> Heatmap:
    """Probabilities that stay `CLIP` away from 0 and 1, as CenterPoint's losses want them."""
    return logits.sigmoid().clamp(CLIP, 1 - CLIP)
