"""Terms on how cells relate to each other: affinity and the non-local block."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from student.distill.criteria import CRITERIA
from student.distill.feature_stats import counted_cells, only
from student.distill.term_configs import Criterion

Scalar = Float[Tensor, ""]


def affinity(
    student: Float[Tensor, "*B N _"],
    teacher: Float[Tensor, "*B N _"],
    criterion: Criterion = "smooth_l1",
    split: int = 1,
    inside: Bool[Tensor, "*B N"] | None = None,
) -> Scalar:
    """Mean difference of the Gram matrices F F^T of N cells; 0 for no cells. Channels may differ.

    Args:
        split: compare within this many random groups of cells, and take the groups' mean.
        inside: the cells that count; both sides are 0 in the others.
    """
    if inside is None:
        inside = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    cells = student.shape[-2]
    if cells == 0:
        return student.sum() * 0.0
    groups = [torch.arange(cells, device=student.device)]
    if split > 1:
        order = torch.randperm(cells, device=student.device)
        groups = [order[start::split] for start in range(min(split, cells))]
    parts = [
        _gram_difference(student[..., group, :], teacher[..., group, :], inside[..., group], criterion)
        for group in groups
    ]
    return torch.stack(parts).mean()


def _gram_difference(student: Tensor, teacher: Tensor, inside: Tensor, criterion: Criterion) -> Tensor:
    difference = CRITERIA[criterion](student @ student.mT - teacher @ teacher.mT)
    return difference.sum() / inside.sum(dim=-1).double().square().sum().clamp(min=1).to(difference.dtype)


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
        return attention > threshold * flat.sum(dim=1)[:, None, None]
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

    def forward(
        self, features: Float[Tensor, "B C H W"], inside: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The block among the cells that count, by default all; the others give 0 and have no part in its norm."""
        theta, phi, g = (layer(features) for layer in (self.theta, self.phi, self.g))
        theta, phi, g = theta.flatten(2), only(phi, inside).flatten(2), g.flatten(2)
        cells = counted_cells(features, inside)[:, None, None].to(g.dtype)
        mixed = self.out(((g @ phi.mT / cells) @ theta).unflatten(2, features.shape[2:]))
        if inside is None:
            return features + self.norm(mixed)
        normed = torch.zeros_like(mixed).movedim(1, -1)
        normed[inside] = self.norm(mixed.movedim(1, -1)[inside][:, :, None, None])[:, :, 0, 0]
        return only(features + normed.movedim(-1, 1), inside)
