"""Statistics of a pair of feature maps, by cell (B, H, W) and by channel (B, C), and helpers for valid cells."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from cache.store.codec import Encoded
from student.distill.criteria import Criterion
from student.distill.fused import FusedStats


@dataclass(frozen=True, kw_only=True)
class FeatureStats:
    """Sums over the feature maps (B, C, H, W) of student S and teacher T, from which most terms are computed.

    error: sum over channels of criterion(S - T).
    weighted_error: the same, each channel times the teacher's channel attention.
    student_sum, teacher_sum: sums over channels.
    student_energy, teacher_energy: sums over channels of absolute values, without gradient.
    student_channels, teacher_channels: sums over cells.
    channels: C.
    valid_mask: the valid cells; None for all.
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
    valid_mask: Bool[Tensor, "B H W"] | None = None

    @property
    def cells(self) -> Float[Tensor, "B"]:
        """The number of valid cells of each sample; 1 where there are none."""
        return count_valid(self.error, self.valid_mask)


def count_valid(maps: Float[Tensor, "B *_"], valid_mask: Bool[Tensor, "B H W"] | None) -> Float[Tensor, "B"]:
    """The number of valid cells of each sample of maps (B, ..., H, W); 1, as a divisor, where there are none."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    if valid_mask is None:
        return maps.new_full((len(maps),), maps.shape[-2] * maps.shape[-1], dtype=dtype)
    return valid_mask.sum(dim=(1, 2)).clamp(min=1).to(dtype)


@torch.compiler.disable
def feature_stats(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"] | Encoded,
    criterion: Criterion = "mse",
    channel_temperature: float = 0.5,
    valid_mask: Bool[Tensor, "B H W"] | None = None,
) -> FeatureStats:
    """Statistics of a pair of feature maps of equal shape, in float32 (float64 for float64 students).

    Args:
        teacher: float features, or features as stored in the cache.
        channel_temperature: t of the channel attention, C softmax over channels of (mean over cells of |T| / t).
        valid_mask: the valid cells; both maps are 0 in the others.
    """
    values, stored = split_stored(teacher)
    temperature = channel_temperature * count_valid(student, valid_mask)
    sums = FusedStats.apply(student, values, stored, criterion, temperature)
    return FeatureStats(**dict(zip(_SUMS, sums, strict=True)), channels=student.shape[1], valid_mask=valid_mask)


_SUMS = tuple(name for name in FeatureStats.__dataclass_fields__ if name not in ("channels", "valid_mask"))


def split_stored(features: Float[Tensor, "B C H W"] | Encoded) -> tuple[Shaped[Tensor, "B C H W"], Encoded | None]:
    """The tensor of features, and the codec and scales that it needs if they are stored ones: inputs of a Function."""
    return (features.values, features) if isinstance(features, Encoded) else (features, None)


def as_float(features: Tensor | Encoded, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B C H W"]:
    """Float features, (B, C, H, W), from float or stored ones."""
    return features.decode(dtype) if isinstance(features, Encoded) else features.to(dtype)


def mask_cells(maps: Shaped[Tensor, "B *_"], valid_mask: Bool[Tensor, "B H W"] | None) -> Shaped[Tensor, "B *_"]:
    """Maps (B, ..., H, W) with 0 in invalid cells, whatever they hold there, NaN included."""
    if valid_mask is None:
        return maps
    return torch.where(valid_mask if maps.dim() == 3 else valid_mask[:, None], maps, maps.new_zeros(()))


def full_precision(features: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The features in float32, or float64 if they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
