"""`foreground_background`: differences inside and outside boxes, weighted apart (docs/objective.md, equation 11)."""

from typing import Literal

import torch

from student.distill.criteria import Criterion
from student.distill.feature_stats import mask_cells
from student.distill.masks import background, bg_scale, box_masks
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Weights, masked_sum


class ForegroundBackgroundTerm(PairTerm):
    """`foreground_background`: the difference inside and outside boxes, weighted apart."""

    kind: Literal["foreground_background"]
    criterion: Criterion = "mse"
    scale: bool = True
    """Scale cells as `combine_gt` of fgd does."""
    fg_weight: Weights = 1.5e-3
    bg_weight: Weights = 4e-2


class ForegroundBackgroundLoss(PairLoss[ForegroundBackgroundTerm]):
    """`foreground_background` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        masks, stats = box_masks(predictions.boxes, self.grid), features.stats(self.config.criterion)
        objects = mask_cells(masks.foreground, features.valid_mask)
        scale = torch.ones_like(objects)
        if self.config.scale:
            scale = torch.maximum(masks.fg_scale, bg_scale(objects.sum(dim=(1, 2)), stats.cells))
        rest = background("logical_not", objects)  # the error is 0 in invalid cells
        return {
            "foreground": self.weight("fg_weight") * masked_sum(stats.error, objects * scale),
            "background": self.weight("bg_weight") * masked_sum(stats.error, rest * scale),
        }
