"""Spatial attention over BEV cells (docs/objective.md, equation 4)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from student.distill.regions import Region

Map = Float[Tensor, "B H W"]
SpatialAttention = Literal["none", "teacher", "teacher_student"]


def spatial_attention(energy: Map, temperature: float, valid_mask: Region | None = None) -> Map:
    """Softmax over cells of mean_c |F| / t, times the number of cells.

    Args:
        energy: mean over channels of absolute values.
        valid_mask: the valid cells (default: all); the others get 0 and are not counted.
    """
    logits, cells = energy.flatten(1) / temperature, float(energy[0].numel())
    if valid_mask is None:
        return (torch.softmax(logits, dim=1) * cells).view_as(energy)
    valid = valid_mask.flatten(1)
    logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
    return (torch.softmax(logits, dim=1) * valid * valid.sum(dim=1, keepdim=True)).view_as(energy)


def joint_attention(
    kind: SpatialAttention,
    teacher: Map,
    student: Map,
    temperature: float,
    student_ratio: float = 1.0,
    valid_mask: Region | None = None,
) -> Map:
    """Weights of cells by the attention of teacher and student, without gradient.

    Args:
        kind: `teacher` for the teacher's; `teacher_student` for (A_t + r A_s) / (1 + r); `none` for ones.
        teacher, student: mean over channels of absolute values; the student's after its adapter.
        student_ratio: r.
        valid_mask: the valid cells (default: all).
    """
    if kind == "none":
        return torch.ones_like(teacher)
    attention = spatial_attention(teacher.detach(), temperature, valid_mask)
    if kind == "teacher_student":
        of_student = spatial_attention(student.detach(), temperature, valid_mask)
        attention = (attention + student_ratio * of_student) / (1 + student_ratio)
    return attention
