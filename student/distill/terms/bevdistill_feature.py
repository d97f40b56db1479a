"""`bevdistill_feature`: feature imitation under Gaussians of the boxes (docs/objective.md, equation 23; BEVDistill)."""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt

from student.distill.criteria import Criterion
from student.distill.feature_stats import FeatureStats, mask_cells
from student.distill.gaussians import draw_heatmaps
from student.distill.masks import Map
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class BevdistillFeatureTerm(PairTerm):
    """`bevdistill_feature`: the difference of the features, weighted by Gaussians around the boxes' centres.

    BEVDistill (Chen et al., ICLR 2023), dense feature distillation.
    """

    kind: Literal["bevdistill_feature"]
    criterion: Criterion = "mse"
    overlap: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of CenterPoint's radius."""
    min_radius: NonNegativeInt = 1
    """In cells."""
    weight: Weights = 1e-2


class BevdistillFeatureLoss(PairLoss[BevdistillFeatureTerm]):
    """`bevdistill_feature` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        boxes, config = predictions.boxes, self.config
        channel = torch.zeros_like(predictions.channels)
        weight = draw_heatmaps(boxes, channel, 1, self.grid, config.overlap, config.min_radius)[:, 0]
        stats = features.stats(config.criterion)
        return {"feature": self.weight() * weighted_mean(stats, mask_cells(weight, features.valid_mask))}


def weighted_mean(stats: FeatureStats, weight: Map) -> Scalar:
    """Sum over channels of the criterion, its mean over all cells of the batch by weight; 0 without any weight."""
    total = weight.sum()
    return (stats.error * weight).sum() / torch.where(total > 0, total, 1.0)
