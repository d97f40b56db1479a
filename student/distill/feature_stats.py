"""What the terms need to know of a pair of feature maps: maps (B, H, W) and vectors (B, C), formed in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from cache.store.codec import Encoded
from student.distill.fused import OnePass
from student.distill.term_configs import Criterion


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is left of two feature maps (B, C, H, W), student S and teacher T, by cell and by channel.

    error: sum over channels of criterion(S - T).
    weighted_error: the same, each channel times the teacher's channel attention.
    student_sum, teacher_sum: sums over channels.
    student_energy, teacher_energy: sums over channels of absolute values, without gradient.
    student_channels, teacher_channels: sums over cells.
    channels: C.
    inside: the cells that count; None for all.
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
    inside: Bool[Tensor, "B H W"] | None = None

    @property
    def cells(self) -> Float[Tensor, "B"]:
        """How many cells of each sample count; 1 where none does, so that it can be divided by."""
        return counted_cells(self.error, self.inside)


def counted_cells(maps: Float[Tensor, "B *_"], inside: Bool[Tensor, "B H W"] | None) -> Float[Tensor, "B"]:
    """The number of cells (H, W) of each sample that count; 1 where none does.

    Args:
        maps: of the grid; its last two dimensions are (H, W).
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    if inside is None:
        return maps.new_full((len(maps),), maps.shape[-2] * maps.shape[-1], dtype=dtype)
    return inside.sum(dim=(1, 2)).clamp(min=1).to(dtype)


@torch.compiler.disable
def moments(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"] | Encoded,
    criterion: Criterion = "mse",
    channel_temperature: float = 0.5,
    inside: Bool[Tensor, "B H W"] | None = None,
) -> Moments:
    """The moments of a pair of feature maps of equal shape, in float32 (float64 for float64 students).

    Args:
        teacher: float features, or features as the cache stores them.
        channel_temperature: t of the channel attention, C softmax over channels of (mean over cells of |T| / t).
        inside: the cells that count; both maps are 0 in the others.
    """
    stored = teacher if isinstance(teacher, Encoded) else None
    values = teacher.values if isinstance(teacher, Encoded) else teacher
    temperature = channel_temperature * counted_cells(student, inside)
    parts = OnePass.apply(student, values, stored, criterion, temperature)
    return Moments(**dict(zip(_PARTS, parts, strict=True)), channels=student.shape[1], inside=inside)


_PARTS = tuple(name for name in Moments.__dataclass_fields__ if name not in ("channels", "inside"))


def decoded(features: Tensor | Encoded, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float features, (B, C, H, W), whatever form they came in."""
    return features.decode(dtype) if isinstance(features, Encoded) else features.to(dtype)


def only(maps: Shaped[Tensor, "B *_"], inside: Bool[Tensor, "B H W"] | None) -> Shaped[Tensor, "B *_"]:
    """Maps (B, ..., H, W), 0 in the cells that do not count; whatever is there, NaN included, has no influence."""
    if inside is None:
        return maps
    return torch.where(inside if maps.dim() == 3 else inside[:, None], maps, maps.new_zeros(()))


def full(features: Tensor) -> Tensor:
    """The features, of any shape, in float32, or in float64 if that is what they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
