"""One pass over a pair of feature maps, forwards and backwards, in blocks of channels.

A batch of 384 x 128 x 128 features is far larger than any cache of a CPU, and what the terms need of it is small. A
block is read once and all its sums are formed while it is in the cache; a stored teacher stays 8 bits wide until its
block is read. The backward pass does the same and writes the gradient, the only thing of the features' size there is.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from cache.codec import Encoded
from student.distill.attention import channel_attention
from student.distill.criteria import SLOPES, VALUES
from student.distill.term_configs import Criterion

BLOCK = {"cpu": 2**18}
"""Elements of a block: 1 MB of float32 on a CPU."""
DEVICE_BLOCK = 2**21
"""On other devices: large enough to keep them busy."""


class _Blocks:
    """A batch in blocks of channels, each as (sample, student's rows, teacher's codes, their scale), rows of H W cells.

    A teacher's feature is its code times the scale of its channel; features that are not stored that way are their
    own codes, with scale 1. Rows are for reading, and only until the next block.
    """

    def __init__(self, student: Tensor, values: Tensor, stored: Encoded | None) -> None:
        self.student, self.values = student, values
        self.dtype = torch.promote_types(student.dtype, torch.float32)
        self.batch, self.channels, self.cells = student.shape[0], student.shape[1], student[0, 0].numel()
        self.size = max(1, min(self.channels, BLOCK.get(student.device.type, DEVICE_BLOCK) // self.cells))
        self.scale = torch.ones(self.batch, self.channels, dtype=self.dtype, device=student.device)
        self.positive = stored is not None and stored.codec.kind == "unsigned"
        self.companded = stored if stored is not None and stored.codec.companding != 1 else None
        if stored is not None and self.companded is None:
            self.scale = stored.scale.to(self.dtype)
        self.room = self.scratch(), self.scratch()

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        samples = (sample for sample in range(self.batch) for _ in range(0, self.channels, self.size))
        steps = self.scale if self.companded is None else self.companded.scale
        features = (self.split(part) for part in (self.student, self.values, self.scale, steps))
        for sample, ours, values, scale, step in zip(samples, *features, strict=True):
            if self.companded is not None:
                values = replace(self.companded, values=values, scale=step).decode(self.dtype)
            yield sample, self._rows(ours, 0), self._rows(values, 1), scale

    def split(self, features: Shaped[Tensor, "B C *rest"]) -> list[Shaped[Tensor, "_ *rest"]]:
        """What belongs to each block."""
        return [part for sample in features.unbind() for part in sample.split(self.size)]

    def scratch(self) -> Float[Tensor, "n cells"]:
        """Room for the rows of a block."""
        return torch.empty(self.size, self.cells, dtype=self.dtype, device=self.student.device)

    def _rows(self, features: Tensor, side: int) -> Float[Tensor, "n cells"]:
        rows = features.reshape(-1, self.cells)
        return rows if rows.dtype == self.dtype else self.room[side][: len(rows)].copy_(rows)


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


class OnePass(torch.autograd.Function):
    """The moments, in the order of `_PARTS`, and their gradient, block by block."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, values: Tensor, stored: Encoded | None, criterion: Criterion, temperature: float
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(student, values, stored)
        maps = [blocks.scale.new_zeros(blocks.batch, blocks.cells) for _ in range(5)]
        error, our_sum, their_sum, our_energy, their_energy = (part.unbind() for part in maps)
        sums: list[list[Tensor]] = [[], [], []]
        attended, room = _AttendedSum(blocks, temperature), blocks.scratch()
        for sample, ours, codes, scale in blocks:
            work, ones = room[: len(ours)], torch.ones_like(scale)
            our_sum[sample].addmv_(ours.T, ones)
            their_sum[sample].addmv_(codes.T, scale)
            our_energy[sample].addmv_(torch.abs(ours, out=work).T, ones)
            sums[0].append(ours.sum(1))
            sums[1].append(codes.sum(1) * scale)
            sums[2].append(sums[1][-1])
            if not blocks.positive:
                sizes = torch.abs(codes, out=work)
                their_energy[sample].addmv_(sizes.T, scale)
                sums[2][-1] = sizes.sum(1) * scale
            errors = VALUES[criterion](torch.addcmul(ours, codes, scale[:, None], value=-1, out=work))
            error[sample].addmv_(errors.T, ones)
            attended.add(sample, errors, sums[2][-1] / blocks.cells)
        our_channels, their_channels, energy = (torch.cat(parts).view_as(blocks.scale) for parts in sums)
        ctx.save_for_backward(student, values, channel_attention(energy / blocks.cells, temperature))
        ctx.stored, ctx.criterion = stored, criterion
        ctx.set_materialize_grads(False)
        if blocks.positive:
            maps[4].copy_(maps[2])
        maps.insert(1, attended.total())
        shaped = [part.view(blocks.batch, *student.shape[2:]) for part in maps]
        ctx.mark_non_differentiable(*shaped[4:])
        return *shaped, our_channels, their_channels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """With pull = slope (g_error + a g_weighted): dS = pull + g_sum + g_channels, and dT = -pull + its own two."""
        student, values, attention = ctx.saved_tensors
        blocks = _Blocks(student, values, ctx.stored)
        steepness, slope_of = SLOPES[ctx.criterion]
        error, weighted, *levels = (
            attention.new_zeros(blocks.batch, blocks.cells) if gradient is None else gradient.reshape(blocks.batch, -1)
            for gradient in gradients[:4]
        )
        error, weighted = (steepness * error).unbind(), (steepness * weighted).unbind()
        targets = [
            _Target(blocks, features, sign, level, by_channel)
            for features, needed, sign, level, by_channel in zip(
                (student, values), ctx.needs_input_grad[:2], (1, -1), levels, gradients[6:], strict=True
            )
            if needed
        ]
        room, factors = blocks.scratch(), blocks.scratch()
        for index, ((sample, ours, codes, scale), share) in enumerate(
            zip(blocks, blocks.split(attention[..., None]), strict=True)
        ):
            slope = slope_of(torch.addcmul(ours, codes, scale[:, None], value=-1, out=room[: len(ours)]))
            factor = torch.addcmul(error[sample], share, weighted[sample], out=factors[: len(ours)])
            for target in targets:
                target.write(index, sample, slope, factor)
        found = iter([target.gradient for target in targets])
        return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None, None


class _Target:
    """One side's gradient, written block by block: sign slope factor + the gradients of its sums."""

    def __init__(
        self, blocks: _Blocks, features: Tensor, sign: int, by_cell: Tensor, by_channel: Tensor | None
    ) -> None:
        self.gradient = features.new_empty(features.shape)
        self.sign, self.by_cell = sign, by_cell.unbind()
        self.rows = blocks.split(self.gradient.flatten(2))
        self.by_channel = None if by_channel is None else blocks.split(by_channel[..., None])

    def write(self, index: int, sample: int, slope: Tensor, factor: Tensor) -> None:
        """Fill in block number `index`."""
        torch.addcmul(self.by_cell[sample], slope, factor, value=self.sign, out=self.rows[index])
        if self.by_channel is not None:
            self.rows[index] += self.by_channel[index]
