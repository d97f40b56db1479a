"""`affinity`: similarities of cells, in the teacher and in the student (docs/objective.md, equations 9 and 15)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor

from cache.errors import ConfigError
from student.distill.criteria import CRITERIA, Criterion
from student.distill.feature_stats import as_float, full_precision
from student.distill.pairs import LayerPair, PairFeatures
from student.distill.predictions import BatchPredictions
from student.distill.terms.base import Losses, PairLoss, PairTerm, Scalar, Weights


class AffinityTerm(PairTerm):
    """`affinity`: the cells' similarities to each other, in the teacher and in the student before its adapter."""

    weighs_cells = False
    kind: Literal["affinity"]
    every: PositiveInt = 16
    """Take every n-th cell, in row-major order."""
    split: PositiveInt = 1
    """Compare within this many random groups of cells, to save memory."""
    criterion: Criterion = "smooth_l1"
    weight: Weights = 1.0


class AffinityLoss(PairLoss[AffinityTerm]):
    """`affinity` on a pair; the student is taken before its adapter.

    Raises:
        ConfigError: the adapter changes the student's cells, which are then not the teacher's.
    """

    def __init__(self, config: AffinityTerm, index: int, pair: LayerPair) -> None:
        super().__init__(config, index, pair)
        (_, *before), behind = pair.shapes[0], pair.grid.shape
        if tuple(before) != behind:
            raise ConfigError(
                "affinity compares the student's cells before its adapter with the teacher's",
                where=f"distill.pairs, {pair.config.label}",
                got=f"{before[0]} x {before[1]} cells",
                expected=f"{behind[0]} x {behind[1]}",
                cure="Leave this pair out of the term's `pairs`, or resize the teacher instead",
            )

    def forward(self, features: PairFeatures, predictions: BatchPredictions) -> Losses:
        student, every = full_precision(features.raw), self.config.every
        teacher = as_float(features.teacher, student.dtype)
        student, teacher = (x.flatten(2)[..., ::every].mT for x in (student, teacher))
        valid_mask = None if features.valid_mask is None else features.valid_mask.flatten(1)[:, ::every]
        value = affinity(student, teacher, self.config.criterion, self.config.split, valid_mask)
        return {"affinity": self.weight() * value}


def affinity(
    student: Float[Tensor, "*B N _"],
    teacher: Float[Tensor, "*B N _"],
    criterion: Criterion = "smooth_l1",
    split: int = 1,
    valid_mask: Bool[Tensor, "*B N"] | None = None,
) -> Scalar:
    """Mean difference of the Gram matrices F F^T of N cells; 0 for no cells. Channels may differ.

    Args:
        split: compare within this many random groups of cells, and take the groups' mean.
        valid_mask: the valid cells; both sides are 0 in the others.
    """
    if valid_mask is None:
        valid_mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    cells = student.shape[-2]
    if cells == 0:
        return student.sum() * 0.0
    groups = [torch.arange(cells, device=student.device)]
    if split > 1:
        order = torch.randperm(cells, device=student.device)
        groups = [order[start::split] for start in range(min(split, cells))]
    parts = [
        _gram_difference(student[..., group, :], teacher[..., group, :], valid_mask[..., group], criterion)
        for group in groups
    ]
    return torch.stack(parts).mean()


def _gram_difference(student: Tensor, teacher: Tensor, valid_mask: Tensor, criterion: Criterion) -> Tensor:
    difference = CRITERIA[criterion](student @ student.mT - teacher @ teacher.mT)
    pairs = valid_mask.sum(dim=-1).double().square().sum().clamp(min=1)
    return difference.sum() / pairs.to(difference.dtype)
