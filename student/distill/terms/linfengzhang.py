"""`linfengzhang` (docs/objective.md, equation 12)."""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from cache.errors import ConfigError
from student.distill.adapters import CellConv
from student.distill.attention import spatial_attention
from student.distill.feature_stats import FeatureStats, count_valid, full_precision, mask_cells
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class LinfengzhangTerm(PairTerm):
    """`linfengzhang`: attention-guided distillation (Zhang and Ma, ICLR 2021)."""

    kind: Literal["linfengzhang"]
    spatial_temperature: PositiveFloat = 0.1
    channel_temperature: PositiveFloat = 0.1
    feature_weight: Weights = 1e-3
    channel_weight: Weights = 4e-3
    spatial_weight: Weights = 4e-3


class LinfengzhangLoss(PairLoss[LinfengzhangTerm]):
    """`linfengzhang` on a pair; channel and spatial terms have own adapters of the student's unadapted features."""

    def __init__(self, config: LinfengzhangTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        if pair.config.student_adapter.factor > 1 and self.weight("spatial_weight"):
            raise ConfigError(
                "linfengzhang's spatial term compares the student's cells before its adapter",
                where=f"distill.pairs, {pair.config.label}",
                got=f"an adapter with factor {pair.config.student_adapter.factor}",
                cure="Set spatial_weight to 0 for this pair, or resize the teacher instead",
            )
        self.channel_adapter = nn.Linear(pair.student_channels, pair.channels)
        self.spatial_adapter = CellConv()

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        stats = features.stats("mse", self.config.channel_temperature)
        raw, valid_mask = full_precision(features.raw), features.valid_mask
        means = raw.sum(dim=(2, 3)) / count_valid(raw, features.raw_valid_mask)[:, None]
        # A sample without a valid cell has no means.
        has_means = 1.0 if valid_mask is None else valid_mask.any(dim=(1, 2))[:, None]
        losses = {
            "feature": attended_distance(stats, self.config.spatial_temperature),
            "channel": distance(self.channel_adapter(means) * has_means, stats.teacher_channels / stats.cells[:, None]),
        }
        if self.weight("spatial_weight"):
            spatial = self.spatial_adapter(raw.mean(dim=1, keepdim=True))[:, 0]
            losses["spatial"] = distance(mask_cells(spatial, valid_mask), stats.teacher_sum / stats.channels)
        return {name: self.weight(f"{name}_weight") * value for name, value in losses.items()}


def attended_distance(stats: FeatureStats, temperature: float) -> Scalar:
    """Mean over samples of sqrt(sum of (S - T)^2 A_spatial A_channel), with the teacher's attentions."""
    attention = spatial_attention(stats.teacher_energy / stats.channels, temperature, stats.valid_mask)
    squares = (stats.weighted_error * attention).sum(dim=(1, 2))
    # The root has no slope at 0; the clamp keeps the gradient finite there.
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt().mean()


def distance(student: Tensor, teacher: Tensor) -> Scalar:
    """Euclidean distance of two tensors of one shape, over the whole batch."""
    return torch.linalg.vector_norm(student - teacher)
