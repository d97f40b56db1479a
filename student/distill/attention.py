"""Where a network looks: attention over cells (docs/objective.md, equation 4) and the maps of attention transfer."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from student.distill.term_configs import SpatialAttention

Map = Float[Tensor, "B H W"]
Region = Bool[Tensor, "B H W"]


def spatial_attention(energy: Map, temperature: float, inside: Region | None = None) -> Map:
    """Softmax over cells of mean_c |F| / t, times the number of cells.

    Args:
        energy: mean over channels of absolute values.
        inside: the cells that count; the others get no attention and are not counted.
    """
    logits, cells = energy.flatten(1) / temperature, float(energy[0].numel())
    if inside is None:
        return (torch.softmax(logits, dim=1) * cells).view_as(energy)
    counted = inside.flatten(1)
    logits = logits.masked_fill(~counted, torch.finfo(logits.dtype).min)
    return (torch.softmax(logits, dim=1) * counted * counted.sum(dim=1, keepdim=True)).view_as(energy)


def joint_attention(
    kind: SpatialAttention,
    teacher: Map,
    student: Map,
    temperature: float,
    student_ratio: float = 1.0,
    inside: Region | None = None,
) -> Map:
    """The spatial attention that weighs the cells, without gradient.

    Args:
        kind: `teacher` for the teacher's alone; `teacher_student` for (A_t + r A_s) / (1 + r); `none` for ones.
        teacher, student: mean over channels of absolute values; the student's after its adapter.
        student_ratio: r.
        inside: the cells that count; left out, all.
    """
    if kind == "none":
        return torch.ones_like(teacher)
    attention = spatial_attention(teacher.detach(), temperature, inside)
    if kind == "teacher_student":
        of_student = spatial_attention(student.detach(), temperature, inside)
        attention = (attention + student_ratio * of_student) / (1 + student_ratio)
    return attention


def activation_map(features: Float[Tensor, "B C H W"], p: float) -> Float[Tensor, "B N"]:
    """Sum over channels of |F|^p, scaled to length 1 (Zagoruyko and Komodakis 2017); zeros stay zeros."""
    return torch.nn.functional.normalize(features.abs().pow(p).sum(dim=1).flatten(1), dim=1)
