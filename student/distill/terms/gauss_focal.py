"""`gauss_focal_heatmap`: Gaussian focal loss with the teacher's heatmap as target (docs/objective.md, equation 19)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from student.distill.feature_stats import mask_cells
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import HeatmapLoss, HeatmapTerm, Losses, Scalar, Weight


class GaussFocalTerm(HeatmapTerm):
    """`gauss_focal_heatmap`: the Gaussian focal loss with the teacher's heatmap as the target."""

    kind: Literal["gauss_focal_heatmap"]
    weight: Weight = 1.0


class GaussFocalLoss(HeatmapLoss[GaussFocalTerm]):
    """`gauss_focal_heatmap` on a batch, one loss for each of the head's tasks."""

    def forward(self, predictions: BatchPredictions) -> Losses:
        student, teacher = predictions.student_probability, predictions.teacher_probability(self.config.cache)
        valid_mask = predictions.teachers[self.config.cache].valid_mask
        peaks = mask_cells((predictions.truth == 1).float(), valid_mask)
        return {
            f"task{task}": self.config.weight
            * gauss_focal(student[:, part], teacher[:, part], peaks[:, part].sum(), valid_mask)
            for task, part in enumerate(predictions.task_slices)
        }


def gauss_focal(
    student: Float[Tensor, "B K H W"],
    teacher: Float[Tensor, "B K H W"],
    peaks: Scalar,
    valid_mask: Bool[Tensor, "B H W"] | None = None,
) -> Scalar:
    """Gaussian focal loss (CornerNet, equation 1; alpha 2, gamma 4), summed and divided by the number of peaks.

    Args:
        student, teacher: probabilities between CLIP and 1 - CLIP. The target is never 1, so every cell pulls the
            student down, by (1 - teacher)^4: as published.
        peaks: the number of ground-truth peaks, at least 1.
        valid_mask: the valid cells (default: all).
    """
    loss = -torch.log1p(-student) * student**2 * (1 - teacher) ** 4
    return mask_cells(loss, valid_mask).sum() / peaks.clamp(min=1)
