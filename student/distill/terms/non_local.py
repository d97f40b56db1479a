"""`non_local`: differences after non-local blocks (Wang et al., CVPR 2018; docs/objective.md, equation 14)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from student.distill.criteria import CRITERIA, Criterion
from student.distill.feature_stats import as_float, count_valid, full_precision, mask_cells
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Weights


class NonLocalTerm(PairTerm):
    """`non_local`: the difference after a non-local block on either side."""

    weighs_cells = False
    kind: Literal["non_local"]
    criterion: Criterion = "mse"
    weight: Weights = 1.0


class NonLocal(nn.Module):
    """A non-local block with dot-product affinity over the number of cells, and a residual (Wang et al. 2018, 3.2).

    (theta phi^T) g is computed as theta (phi^T g): no matrix of cells times cells is formed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        # The block starts as the identity.
        nn.init.zeros_(self.norm.weight)

    def forward(
        self, features: Float[Tensor, "B C H W"], valid_mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The block over the valid cells (default: all); the others give 0 and have no part in its norm."""
        theta, phi, g = (layer(features) for layer in (self.theta, self.phi, self.g))
        theta, phi, g = theta.flatten(2), mask_cells(phi, valid_mask).flatten(2), g.flatten(2)
        cells = count_valid(features, valid_mask)[:, None, None].to(g.dtype)
        mixed = self.out(((g @ phi.mT / cells) @ theta).unflatten(2, features.shape[2:]))
        if valid_mask is None:
            return features + self.norm(mixed)
        normed = torch.zeros_like(mixed).movedim(1, -1)
        normed[valid_mask] = self.norm(mixed.movedim(1, -1)[valid_mask][:, :, None, None])[:, :, 0, 0]
        return mask_cells(features + normed.movedim(-1, 1), valid_mask)


class NonLocalLoss(PairLoss[NonLocalTerm]):
    """`non_local` on a pair; the pair's adapter follows the student's block."""

    def __init__(self, config: NonLocalTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        self.student, self.teacher = NonLocal(pair.student_channels), NonLocal(pair.channels)

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        valid_mask = features.valid_mask
        student = features.adapt(self.student(full_precision(features.raw), features.raw_valid_mask))
        student = mask_cells(student, valid_mask)
        difference = student - self.teacher(as_float(features.teacher, student.dtype), valid_mask)
        elements = count_valid(student, valid_mask).sum() * student.shape[1]
        return {"relation": self.weight() * CRITERIA[self.config.criterion](difference).sum() / elements}
