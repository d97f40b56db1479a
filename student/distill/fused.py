"""Fused forward and backward pass over a pair of feature maps, sample by sample in blocks of channels.

A batch of 384 x 128 x 128 features is far larger than a CPU's cache, and the sums over it are small. Each block is read
once, and all sums are updated while it is cached; a stored teacher stays 8 bits wide until its block is read. The
backward pass works alike and writes the gradient, the only tensor of the features' size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from cache.store.codec import Encoded
from student.distill.criteria import IN_PLACE, SLOPES, Criterion
from student.distill.parallel import parallel_map

BLOCK = {"cpu": 2**19}
"""Elements of a block: 2 MB of float32 on a CPU."""
DEVICE_BLOCK = 2**20
"""On other devices: large enough to keep them busy, small beside a batch of features."""


class FusedStats(torch.autograd.Function):
    """The sums of `feature_stats.FeatureStats`, in the order of its fields.

    `temperature` is the channel attention's for sums over cells: t times the number of valid cells.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        values: Tensor,
        stored: Encoded | None,
        criterion: Criterion,
        temperature: Float[Tensor, "B"],
    ) -> tuple[Tensor, ...]:
        pairs = _pairs(student, values, stored)
        sums = parallel_map(pairs, lambda index, pair: _sum_up(pair, criterion, temperature[index]), student.device)
        *maps, ours, theirs, attention = (torch.stack(part) for part in zip(*sums, strict=True))
        maps = [part.unflatten(1, student.shape[2:]) for part in maps]
        ctx.save_for_backward(student, values, attention)
        ctx.stored, ctx.criterion = stored, criterion
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*maps[4:])
        return *maps, ours, theirs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        student, values, attention = ctx.saved_tensors
        pairs = _pairs(student, values, ctx.stored)
        none = attention.new_zeros(len(pairs), pairs[0].cells)
        error, weighted, *by_cell = (none if part is None else part.flatten(1) for part in gradients[:4])
        targets = [
            features.new_empty(features.shape) if needed else None
            for features, needed in zip((student, values), ctx.needs_input_grad[:2], strict=True)
        ]

        def write(index: int, pair: _Pair) -> None:
            sides = [
                _Side(
                    sign=sign,
                    rows=pair.split(target[index].flatten(1)),
                    by_cell=level[index],
                    by_channel=None if other is None else pair.split(other[index, :, None]),
                )
                for sign, target, level, other in zip((1, -1), targets, by_cell, gradients[6:], strict=True)
                if target is not None
            ]
            _write_gradient(pair, ctx.criterion, error[index], weighted[index], attention[index], sides)

        parallel_map(pairs, write, student.device)
        return *targets, None, None, None


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """One sample's features.

    A teacher's feature is its code times its channel's scale; float and companded features are codes of scale 1.
    """

    student: Float[Tensor, "C H W"]
    values: Shaped[Tensor, "C H W"]
    stored: Encoded | None

    @cached_property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.student.dtype, torch.float32)

    @cached_property
    def cells(self) -> int:
        return self.student[0].numel()

    @cached_property
    def scale(self) -> Float[Tensor, "C"]:
        if self.stored is None or self.stored.codec.companding != 1:
            return torch.ones(len(self.student), dtype=self.dtype, device=self.student.device)
        return self.stored.scale.to(self.dtype)

    def split(self, features: Shaped[Tensor, "C *rest"]) -> tuple[Shaped[Tensor, "_ *rest"], ...]:
        """Split features or channels into blocks."""
        return features.split(max(1, BLOCK.get(features.device.type, DEVICE_BLOCK) // self.cells))

    def scratch(self) -> Float[Tensor, "n cells"]:
        """Reused memory for the rows of a block: allocating it each time would cost more than the arithmetic on it."""
        return torch.empty(len(self.split(self.student)[0]), self.cells, dtype=self.dtype, device=self.student.device)

    def blocks(self) -> Iterator[tuple[Float[Tensor, "n cells"], Float[Tensor, "n cells"]]]:
        """The student's rows and the teacher's codes; read-only, and valid until the next block."""
        buffers = self.scratch(), self.scratch()
        for index, (ours, theirs) in enumerate(zip(self.split(self.student), self.split(self.values), strict=True)):
            if self.stored is not None and self.stored.codec.companding != 1:
                step = self.split(self.stored.scale)[index]
                theirs = replace(self.stored, values=theirs, scale=step).decode(self.dtype)
            yield self._rows(ours, buffers[0]), self._rows(theirs, buffers[1])

    def _rows(self, features: Tensor, buffer: Tensor) -> Float[Tensor, "n cells"]:
        rows = features.reshape(-1, self.cells)
        return rows if rows.dtype == self.dtype else buffer[: len(rows)].copy_(rows)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The gradient of student or teacher by block, and its parts that do not come from the difference."""

    sign: int
    rows: tuple[Float[Tensor, "n cells"], ...]
    by_cell: Float[Tensor, "cells"]
    by_channel: tuple[Float[Tensor, "n 1"], ...] | None


def _pairs(student: Tensor, values: Tensor, stored: Encoded | None) -> list[_Pair]:
    return [
        _Pair(
            student=student[index],
            values=values[index],
            stored=stored and replace(stored, values=values[index], scale=stored.scale[index]),
        )
        for index in range(len(student))
    ]


@torch.no_grad()
def _sum_up(pair: _Pair, criterion: Criterion, temperature: Float[Tensor, ""]) -> list[Tensor]:
    """Six maps (cells,) and three vectors (C,): the sums, and C softmax(sum over cells of |T| / temperature)."""
    positive = pair.stored is not None and pair.stored.codec.kind == "unsigned"
    our_sum, their_sum, our_energy, their_energy = pair.scale.new_zeros(4, pair.cells)
    scales = pair.split(pair.scale)
    ours_by_channel, theirs_by_channel, logits = [], [], []
    (error, block_error), buffer = pair.scale.new_zeros(2, 2, pair.cells), pair.scratch()
    largest, one = pair.scale.new_full((), -torch.inf), pair.scale.new_ones(())
    for (ours, codes), scale in zip(pair.blocks(), scales, strict=True):
        work, ones = buffer[: len(ours)], torch.ones_like(scale)
        our_sum.addmv_(ours.T, ones)
        their_sum.addmv_(codes.T, scale)
        our_energy.addmv_(torch.abs(ours, out=work).T, ones)
        total = size = codes.sum(1) * scale
        if not positive:
            sizes = torch.abs(codes, out=work)
            their_energy.addmv_(sizes.T, scale)
            size = sizes.sum(1) * scale
        ours_by_channel.append(ours.sum(1))
        theirs_by_channel.append(total)
        # The attention's softmax is over all blocks: until the last, it is relative to the running maximum.
        logits.append(size / temperature)
        before, largest = largest, torch.maximum(largest, logits[-1].max())
        weights = torch.stack([ones, (logits[-1] - largest).exp()])
        difference = IN_PLACE[criterion](torch.addcmul(ours, codes, scale[:, None], value=-1, out=work))
        torch.mm(weights, difference, out=block_error)
        torch.addcmul(block_error, error, torch.stack([one, (before - largest).exp()])[:, None], out=error)
    attention = torch.softmax(torch.cat(logits), dim=0) * len(pair.student)
    maps = error[0], error[1] * attention.max(), our_sum, their_sum, our_energy
    vectors = torch.cat(ours_by_channel), torch.cat(theirs_by_channel), attention
    return [*maps, their_sum if positive else their_energy, *vectors]


@torch.no_grad()
def _write_gradient(
    pair: _Pair, criterion: Criterion, error: Tensor, weighted: Tensor, attention: Tensor, sides: list[_Side]
) -> None:
    """Student: f'(S - T) (g_error + a g_weighted) + g_sum + g_channels; teacher: the same with -f' and its own sums."""
    steepness, slope_of = SLOPES[criterion]
    differences, factors = pair.scratch(), pair.scratch()
    parts = zip(pair.blocks(), pair.split(pair.scale[:, None]), pair.split(attention[:, None]), strict=True)
    error, weighted = steepness * error, steepness * weighted
    for block, ((ours, codes), scale, share) in enumerate(parts):
        slope = slope_of(torch.addcmul(ours, codes, scale, value=-1, out=differences[: len(ours)]))
        factor = torch.addcmul(error, share, weighted, out=factors[: len(ours)])
        for side in sides:
            torch.addcmul(side.by_cell, slope, factor, value=side.sign, out=side.rows[block])
            if side.by_channel is not None:
                side.rows[block].add_(side.by_channel[block])
