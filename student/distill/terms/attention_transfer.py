"""`attention_transfer` (docs/objective.md, equation 17; Zagoruyko and Komodakis, ICLR 2017)."""

from typing import Literal

from jaxtyping import Bool, Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from cache.store.codec import Encoded
from student.distill.feature_stats import as_float, count_valid, full_precision
from student.distill.pairs import PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class AttentionTransferTerm(PairTerm):
    """`attention_transfer`: distance of the normalised activation maps (Zagoruyko and Komodakis 2017, equation 2)."""

    weighs_cells = False
    kind: Literal["attention_transfer"]
    p: PositiveFloat = 2.0
    """The power to which activations are raised in the map."""
    weight: Weights = 1000.0


class AttentionTransferLoss(PairLoss[AttentionTransferTerm]):
    """`attention_transfer` on a pair."""

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        value = attention_transfer(features.adapted, features.teacher, self.config.p, features.valid_mask)
        return {"attention": self.weight() * value}


def attention_transfer(
    student: Float[Tensor, "B _ H W"],
    teacher: Float[Tensor, "B _ H W"] | Encoded,
    p: float = 2.0,
    valid_mask: Bool[Tensor, "B H W"] | None = None,
) -> Scalar:
    """Mean squared difference of the activation maps; channels may differ, and both maps are 0 in invalid cells."""
    student = full_precision(student)
    target = activation_map(as_float(teacher, student.dtype), p)
    return (activation_map(student, p) - target).square().sum() / count_valid(student, valid_mask).sum()


def activation_map(features: Float[Tensor, "B C H W"], p: float) -> Float[Tensor, "B N"]:
    """Sum over channels of |F|^p over the N cells, scaled to length 1; zeros stay zeros."""
    return F.normalize(features.abs().pow(p).sum(dim=1).flatten(1), dim=1)
