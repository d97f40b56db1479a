"""Where a network looks: attention over cells (docs/objective.md, equation 4) and the maps of attention transfer."""

import torch
from jaxtyping import Float
from torch import Tensor

from student.distill.term_configs import SpatialAttention

Map = Float[Tensor, "B H W"]


def spatial_attention(energy: Map, temperature: float) -> Map:
    """Softmax over cells of mean_c |F| / t, times H W.

    Args:
        energy: mean over channels of absolute values.
    """
    batch, height, width = energy.shape
    return (torch.softmax(energy.flatten(1) / temperature, dim=1) * height * width).view(batch, height, width)


def joint_attention(
    kind: SpatialAttention, teacher: Map, student: Map, temperature: float, student_ratio: float = 1.0
) -> Map:
    """The spatial attention that weighs the cells, without gradient.

    Args:
        kind: `teacher` for the teacher's alone; `teacher_student` for (A_t + r A_s) / (1 + r); `none` for ones.
        teacher, student: mean over channels of absolute values; the student's after its adapter.
        student_ratio: r.
    """
    if kind == "none":
        return torch.ones_like(teacher)
    attention = spatial_attention(teacher.detach(), temperature)
    if kind == "teacher_student":
        of_student = spatial_attention(student.detach(), temperature)
        attention = (attention + student_ratio * of_student) / (1 + student_ratio)
    return attention


def activation_map(features: Float[Tensor, "B C H W"], p: float) -> Float[Tensor, "B N"]:
    """Sum over channels of |F|^p, scaled to length 1 (Zagoruyko and Komodakis 2017); zeros stay zeros."""
    return torch.nn.functional.normalize(features.abs().pow(p).sum(dim=1).flatten(1), dim=1)
