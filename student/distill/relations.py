"""Terms on how cells relate to each other: affinity and the non-local block."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from student.distill.criteria import CRITERIA
from student.distill.term_configs import Criterion

Scalar = Float[Tensor, ""]


def affinity(
    student: Float[Tensor, "*B N _"],
    teacher: Float[Tensor, "*B N _"],
    criterion: Criterion = "smooth_l1",
    split: int = 1,
) -> Scalar:
    """Mean difference of the Gram matrices F F^T of N cells; 0 for no cells. Channels may differ.

    Args:
        split: compare within this many random groups of cells, and take the groups' mean.
    """
    cells = student.shape[-2]
    if cells == 0:
        return student.sum() * 0.0
    groups = [torch.arange(cells, device=student.device)]
    if split > 1:
        order = torch.randperm(cells, device=student.device)
        groups = [order[start::split] for start in range(min(split, cells))]
    parts = [_gram_difference(student[..., group, :], teacher[..., group, :], criterion) for group in groups]
    return torch.stack(parts).mean()


def _gram_difference(student: Tensor, teacher: Tensor, criterion: Criterion) -> Tensor:
    return CRITERIA[criterion](student @ student.mT - teacher @ teacher.mT).mean()


def selected_affinity(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    selected: Bool[Tensor, "B H W"],
    criterion: Criterion = "smooth_l1",
    split: int = 1,
) -> Scalar:
    """fgd's affinity: over the selected cells of each sample, summed over samples."""
    parts = [
        affinity(s[:, mask].mT, t[:, mask].mT, criterion, split)
        for s, t, mask in zip(student, teacher, selected, strict=True)
    ]
    return torch.stack(parts).sum()


def attended_cells(
    attention: Float[Tensor, "B H W"], top_k: int, threshold: float | None = None
) -> Bool[Tensor, "B H W"]:
    """The cells of the highest attention: the first `top_k`, or those whose share of the sum is above a threshold."""
    flat = attention.flatten(1)
    if threshold is not None:
        return attention / flat.shape[1] > threshold
    best = flat.topk(min(top_k, flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view_as(attention)


class NonLocal(nn.Module):
    """A non-local block with dot-product affinity over the number of cells, and a residual (Wang et al. 2018, 3.2).

    (theta phi^T) g is computed as theta (phi^T g): no matrix of cells times cells is ever formed.
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

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        theta, phi, g = (layer(features).flatten(2) for layer in (self.theta, self.phi, self.g))
        mixed = (g @ phi.mT / g.shape[-1]) @ theta
        return features + self.norm(self.out(mixed.unflatten(2, features.shape[2:])))
