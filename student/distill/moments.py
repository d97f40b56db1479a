"""One pass over a pair of feature maps: every term of fgd is arithmetic on what it leaves behind.

A feature map of 384 x 128 x 128 is far larger than a cache; the maps (B, H, W) and vectors (B, C) below are not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cache.codec import Encoded
from student.distill.config import Criterion

Elementwise = Callable[[Tensor], Tensor]

CRITERIA: dict[Criterion, Elementwise] = {
    "mse": torch.square,
    "l1": torch.abs,
    "smooth_l1": lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none"),
}
"""Element by element, of the difference student - teacher."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is left of two feature maps (B, C, H, W), student S and teacher T, by cell and by channel.

    error: sum over channels of criterion(S - T).
    weighted_error: the same, each channel times its attention.
    student_sum, teacher_sum: sums over channels.
    student_energy, teacher_energy: sums over channels of absolute values, without gradient.
    student_channels, teacher_channels: sums over cells.
    channel_attention: the teacher's, (B, C), without gradient.
    channels: C.
    """

    error: Float[Tensor, "B H W"]
    weighted_error: Float[Tensor, "B H W"]
    student_sum: Float[Tensor, "B H W"]
    teacher_sum: Float[Tensor, "B H W"]
    student_energy: Float[Tensor, "B H W"]
    teacher_energy: Float[Tensor, "B H W"]
    student_channels: Float[Tensor, "B C"]
    teacher_channels: Float[Tensor, "B C"]
    channels: int


def moments(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"] | Encoded,
    criterion: Criterion = "mse",
    channel_temperature: float = 0.5,
) -> Moments:
    """The moments of a pair of feature maps of equal shape.

    Args:
        teacher: float features, or features as the cache stores them.
        channel_temperature: of the channel attention, softmax over c of mean_hw |T| / t, times C (DistillBEV's code).
    """
    target = decoded(teacher, torch.promote_types(student.dtype, torch.float32))
    student = student.to(target.dtype)
    attention = channel_attention(target.detach().abs().mean(dim=(2, 3)), channel_temperature)
    error = CRITERIA[criterion](student - target)
    return Moments(
        error=error.sum(dim=1),
        weighted_error=torch.einsum("bchw,bc->bhw", error, attention),
        student_sum=student.sum(dim=1),
        teacher_sum=target.sum(dim=1),
        student_energy=student.detach().abs().sum(dim=1),
        teacher_energy=target.detach().abs().sum(dim=1),
        student_channels=student.sum(dim=(2, 3)),
        teacher_channels=target.sum(dim=(2, 3)),
        channels=student.shape[1],
    )


def channel_attention(energy: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """Softmax over channels of the mean absolute value over cells / t, times C."""
    return torch.softmax(energy / temperature, dim=1) * energy.shape[1]


def decoded(features: Tensor | Encoded, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float features, (B, C, H, W), whatever form they came in."""
    return features.decode(dtype) if isinstance(features, Encoded) else features.to(dtype)
