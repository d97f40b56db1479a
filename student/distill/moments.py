"""One pass over a pair of feature maps: every feature term of fgd is arithmetic on what it leaves behind.

A batch of 384 x 128 x 128 features is far larger than any cache of a CPU, and what the terms need of it is small: maps
(B, H, W) and vectors (B, C). The pass goes through both maps in blocks of channels that stay in the cache; the teacher
stays 8 bits wide until a block of it is needed. The backward pass does the same, and forms the gradient and nothing
else of the features' size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cache.codec import Encoded
from student.distill.config import Criterion

_BLOCK = {"cpu": 2**18}
"""Elements of a block: 1 MB of float32 on a CPU."""
_DEVICE_BLOCK = 2**21
"""On other devices: large enough to keep them busy."""

CRITERIA: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "l1": torch.abs,
    "smooth_l1": lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none"),
}
"""Element by element, of the difference student - teacher."""

_VALUES: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": lambda d: d.square_(),
    "l1": lambda d: d.abs_(),
    "smooth_l1": CRITERIA["smooth_l1"],
}
_SLOPES: dict[Criterion, tuple[float, Callable[[Tensor], Tensor]]] = {
    "mse": (2.0, lambda d: d),
    "l1": (1.0, lambda d: d.sign_()),
    "smooth_l1": (1.0, lambda d: d.clamp_(-1, 1)),
}
"""Values and derivatives (a number times a function) written over the difference: a fresh block would cost more than
the arithmetic on it."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is left of two feature maps (B, C, H, W), student S and teacher T, by cell and by channel.

    error: sum over channels of criterion(S - T).
    weighted_error: the same, each channel times the teacher's channel attention.
    student_sum, teacher_sum: sums over channels.
    student_energy, teacher_energy: sums over channels of absolute values, without gradient.
    student_channels, teacher_channels: sums over cells.
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
    """The moments of a pair of feature maps of equal shape, in float32 (float64 for float64 students).

    Args:
        teacher: float features, or features as the cache stores them.
        channel_temperature: t of the channel attention, softmax over c of mean_hw |T| / t, times C.
    """
    stored = teacher if isinstance(teacher, Encoded) else None
    values = teacher.values if isinstance(teacher, Encoded) else teacher
    parts = _OnePass.apply(student, values, stored, criterion, channel_temperature)
    return Moments(**dict(zip(_PARTS, parts, strict=True)), channels=student.shape[1])


_PARTS = tuple(name for name in Moments.__dataclass_fields__ if name != "channels")


def channel_attention(energy: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """Softmax over channels of the mean absolute value over cells / t, times C."""
    return torch.softmax(energy / temperature, dim=1) * energy.shape[1]


def decoded(features: Tensor | Encoded, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float features, (B, C, H, W), whatever form they came in."""
    return features.decode(dtype) if isinstance(features, Encoded) else features.to(dtype)


def full(features: Tensor) -> Tensor:
    """The features in float32, or in float64 if that is what they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


class _Blocks:
    """A batch in blocks of channels, each as (sample, channels, student's rows, teacher's codes), rows of H W cells.

    A teacher's feature is its code times the `scale` of its channel; features that are not stored that way are their
    own codes, with scale 1. Rows are for reading, and only until the next block.
    """

    def __init__(self, student: Tensor, values: Tensor, stored: Encoded | None) -> None:
        self.student, self.values = student, values
        self.dtype = torch.promote_types(student.dtype, torch.float32)
        self.batch, self.channels, self.cells = student.shape[0], student.shape[1], student[0, 0].numel()
        limit = _BLOCK.get(student.device.type, _DEVICE_BLOCK)
        self.size = max(1, min(self.channels, limit // self.cells))
        self.scale = torch.ones(self.batch, self.channels, dtype=self.dtype, device=student.device)
        self.companded = stored if stored is not None and stored.codec.companding != 1 else None
        if stored is not None and self.companded is None:
            self.scale = stored.scale.to(self.dtype)
        self.positive = stored is not None and stored.codec.kind == "unsigned"
        self.room = self.scratch(), self.scratch()

    def __iter__(self) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        for sample in range(self.batch):
            for first in range(0, self.channels, self.size):
                part = slice(first, min(first + self.size, self.channels))
                yield sample, part, self._rows(self.student[sample, part], 0), self._codes(sample, part)

    def _codes(self, sample: int, part: slice) -> Float[Tensor, "n cells"]:
        values = self.values[sample, part]
        if self.companded is not None:
            values = replace(self.companded, values=values, scale=self.companded.scale[sample, part]).decode(self.dtype)
        return self._rows(values, 1)

    def _rows(self, features: Tensor, side: int) -> Float[Tensor, "n cells"]:
        rows = features.reshape(-1, self.cells)
        return rows if rows.dtype == self.dtype else self.room[side][: len(rows)].copy_(rows)

    def scratch(self) -> Float[Tensor, "n cells"]:
        """Room for the rows of a block."""
        return torch.empty(self.size, self.cells, dtype=self.dtype, device=self.student.device)


class _AttendedSum:
    """Sum over channels of rows times softmax(energy / t) C, block by block: the softmax's peak so far is kept at 1."""

    def __init__(self, blocks: _Blocks, temperature: float) -> None:
        self.temperature, self.channels = temperature, blocks.channels
        self.maps = blocks.scale.new_zeros(blocks.batch, blocks.cells)
        self.peak = blocks.scale.new_full((blocks.batch,), -torch.inf)
        self.mass = torch.zeros_like(self.peak)

    def add(self, sample: int, rows: Float[Tensor, "n cells"], energy: Float[Tensor, "n"]) -> None:
        """Take in a block's rows, and the mean absolute values of its teacher's channels."""
        peak, mass = self.peak[sample], self.mass[sample]
        logits = energy / self.temperature
        higher = torch.maximum(peak, logits.max())
        share, fade = (logits - higher).exp(), (peak - higher).exp()
        self.maps[sample].mul_(fade).addmv_(rows.T, share)
        mass.mul_(fade).add_(share.sum())
        peak.copy_(higher)

    def total(self) -> Float[Tensor, "B cells"]:
        """The sum over all channels."""
        return self.maps.mul_(self.channels / self.mass[:, None])


class _OnePass(torch.autograd.Function):
    """The moments, in the order of `_PARTS`, and their gradient, block by block."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, values: Tensor, stored: Encoded | None, criterion: Criterion, temperature: float
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(student, values, stored)
        scale, ones = blocks.scale, torch.ones_like(blocks.scale[0])
        maps = [scale.new_zeros(blocks.batch, blocks.cells) for _ in range(5)]
        sums = [torch.empty_like(scale) for _ in range(3)]
        attended, room = _AttendedSum(blocks, temperature), blocks.scratch()
        for sample, part, ours, codes in blocks:
            work, step = room[: len(ours)], scale[sample, part]
            for side, (rows, weights) in enumerate(((ours, ones[part]), (codes, step))):
                maps[side][sample].addmv_(rows.T, weights)
                torch.sum(rows, 1, out=sums[side][sample, part])
            maps[2][sample].addmv_(torch.abs(ours, out=work).T, ones[part])
            magnitudes = codes
            if not blocks.positive:
                magnitudes = torch.abs(codes, out=work)
                maps[3][sample].addmv_(magnitudes.T, step)
            energy = torch.mean(magnitudes, 1, out=sums[2][sample, part]).mul_(step)
            error = _VALUES[criterion](torch.addcmul(ours, codes, step[:, None], value=-1, out=work))
            maps[4][sample].addmv_(error.T, ones[part])
            attended.add(sample, error, energy)
        ctx.save_for_backward(student, values, channel_attention(sums[2], temperature))
        ctx.stored, ctx.criterion = stored, criterion
        ctx.set_materialize_grads(False)
        student_sum, teacher_sum, student_energy, teacher_energy, error = maps
        if blocks.positive:
            teacher_energy.copy_(teacher_sum)
        flat = error, attended.total(), student_sum, teacher_sum, student_energy, teacher_energy
        shaped = [part.view(blocks.batch, *student.shape[2:]) for part in flat]
        ctx.mark_non_differentiable(*shaped[4:])
        return *shaped, sums[0], sums[1] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """With pull = slope (g_error + a g_weighted): dS = pull + g_sum + g_channels, and dT = -pull + its own two."""
        student, values, attention = ctx.saved_tensors
        blocks = _Blocks(student, values, ctx.stored)
        error, weighted, *levels = (
            attention.new_zeros(blocks.batch, blocks.cells) if gradient is None else gradient.reshape(blocks.batch, -1)
            for gradient in gradients[:4]
        )
        needed = zip((student, values), ctx.needs_input_grad[:2], strict=True)
        targets = [features.new_empty(features.shape) if asked else None for features, asked in needed]
        steepness, slope_of = _SLOPES[ctx.criterion]
        error, weighted = error * steepness, weighted * steepness
        room, factors = blocks.scratch(), blocks.scratch()
        for sample, part, ours, codes in blocks:
            slope, factor = room[: len(ours)], factors[: len(ours)]
            slope_of(torch.addcmul(ours, codes, blocks.scale[sample, part, None], value=-1, out=slope))
            torch.addcmul(error[sample], attention[sample, part, None], weighted[sample], out=factor)
            for target, sign, level, by_channel in zip(targets, (1, -1), levels, gradients[6:], strict=True):
                if target is None:
                    continue
                rows = target[sample, part].view(slope.shape)
                torch.addcmul(level[sample], slope, factor, value=sign, out=rows)
                if by_channel is not None:
                    rows += by_channel[sample, part, None]
        return *targets, None, None, None
