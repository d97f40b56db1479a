"""Features at points of boxes, bilinear: few cells are read, and of a stored teacher only these are decoded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cache.geometry.grid import BevGrid
from cache.store.codec import Encoded
from student.distill.feature_stats import full_precision
from student.distill.head_maps import in_cells
from student.distill.parallel import parallel_map


@dataclass(frozen=True, kw_only=True)
class Corners:
    """The four cells around each of P points of B samples: indices into a map's cells, and bilinear weights.

    inside: points whose cells of any weight are all on the map and valid; the others have no weights.
    """

    index: Int[Tensor, "B P 4"]
    weight: Float[Tensor, "B P 4"]
    inside: Bool[Tensor, "B P"]

    @classmethod
    def of(
        cls, xy_m: Float[Tensor, "B P 2"], grid: BevGrid, valid_mask: Bool[Tensor, "B H W"] | None = None
    ) -> "Corners":
        """The corners of points in the grid's metres; a point on a cell's centre has one corner of weight 1."""
        height, width = grid.shape
        place = in_cells(xy_m, grid) - 0.5
        first = place.floor()
        (left, top), (across, down) = first.long().unbind(-1), (place - first).unbind(-1)
        columns, rows = torch.stack([left, left + 1], dim=-1), torch.stack([top, top + 1], dim=-1)
        weight = torch.stack([1 - down, down], dim=-1)[..., None] * torch.stack([1 - across, across], -1)[..., None, :]
        there = ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[..., None, :]
        index = rows.clamp(0, height - 1)[..., None] * width + columns.clamp(0, width - 1)[..., None, :]
        index, weight, there = index.flatten(2), weight.flatten(2), there.flatten(2)
        if valid_mask is not None:
            there = there & valid_mask.flatten(1).gather(1, index.flatten(1)).view_as(there)
        inside = (there | (weight == 0)).all(dim=-1)
        return cls(index=index, weight=torch.where(inside[..., None], weight, 0.0), inside=inside)

    def among(self, known: Bool[Tensor, "B P"]) -> "Corners":
        """The same, with only these points inside."""
        inside = self.inside & known
        return Corners(index=self.index, weight=torch.where(inside[..., None], self.weight, 0.0), inside=inside)

    def places(self, count: int) -> "list[Places]":
        """The cells that are corners, of `count`, sample by sample."""
        return [Places.of(*of_sample, count) for of_sample in zip(self.index, self.weight, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Places:
    """P points of one sample and the cells around them, of which a box's points share most.

    cells: no cell twice. Only a CPU knows their number without waiting; elsewhere U is an upper bound of it.
    corner: index into `cells` of each point's corners.
    """

    cells: Int[Tensor, "U"]
    corner: Int[Tensor, "P 4"]
    weight: Float[Tensor, "P 4"]

    @classmethod
    def of(cls, index: Int[Tensor, "P 4"], weight: Float[Tensor, "P 4"], count: int) -> "Places":
        """The places of corners with these weights in a map of `count` cells."""
        is_corner = torch.zeros(count, dtype=torch.bool, device=index.device).index_fill_(0, index.flatten(), True)
        number = is_corner.cumsum(dim=0)
        most = int(number[-1]) if index.is_cpu else min(index.numel(), count)
        cells = is_corner.to(torch.uint8).argsort(descending=True, stable=True)[:most]
        return cls(cells=cells, corner=number[index] - 1, weight=weight)

    def read(self, values: Shaped[Tensor, "C H W"], stored: Encoded | None) -> Float[Tensor, "P C"]:
        """The features at the points; of stored ones, only the cells around them are decoded."""
        values = values.flatten(1)
        rows = values.gather(1, self.cells.expand(len(values), -1)).t().contiguous()
        if stored is not None:
            rows = replace(stored, values=rows.t()[..., None]).decode()[..., 0].t()
        rows = full_precision(rows)
        return F.embedding_bag(self.corner, rows, mode="sum", per_sample_weights=self.weight.to(rows.dtype))

    def write(self, gradient: Float[Tensor, "P C"], target: Float[Tensor, "C H W"]) -> None:
        """Set a map's gradient from that of the features at the points: the transpose of `read`."""
        corner, order = self.corner.flatten().sort()
        starts = torch.searchsorted(corner, torch.arange(len(self.cells), device=corner.device))
        weight = self.weight.flatten()[order].to(gradient.dtype)
        rows = F.embedding_bag(order // 4, gradient, starts, mode="sum", per_sample_weights=weight)
        target.flatten(1).zero_().index_copy_(1, self.cells, rows.t().contiguous().to(target.dtype))


Points = Float[Tensor, "M Q C"]
Sums = Callable[[Points, Points, Bool[Tensor, "M Q"]], tuple[Float[Tensor, "n"], Float[Tensor, "g M Q C"]]]
"""Sums over one sample's points, from its two sides' features (0 at points that are not inside): n sums, of which the
first g have a gradient, and their gradients by the first side. They are the same with the sides exchanged."""


class SumsOverPoints(torch.autograd.Function):
    """Sums over the points of `shape` = M boxes x Q points a sample, totals over the batch.

    Sample by sample, and gradients with the sums: the features at the points stay in a CPU's cache, and no tensor of
    their size for the whole batch is allocated but their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        values: Tensor,
        stored: Encoded | None,
        corners: Corners,
        shape: tuple[int, int],
        sums: Sums,
    ) -> Float[Tensor, "n"]:
        places, needed = corners.places(student[0, 0].numel()), ctx.needs_input_grad[:2]

        @torch.no_grad()
        def of_sample(index: int, maps: tuple[_Sample, _Sample]) -> tuple[Tensor, list[Tensor | None]]:
            ours, theirs = (places[index].read(*each).unflatten(0, shape) for each in maps)
            theirs, inside = theirs.to(ours.dtype), corners.inside[index].view(shape)
            values, gradient = sums(ours, theirs, inside)
            return values, [gradient if needed[0] else None, sums(theirs, ours, inside)[1] if needed[1] else None]

        both = list(zip(_samples(student, None), _samples(values, stored), strict=True))
        found, gradients = zip(*parallel_map(both, of_sample, student.device), strict=True)
        ctx.places, ctx.gradients, ctx.like = places, gradients, (student, values)
        return torch.stack(found).sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, "n"]) -> tuple[Tensor | None, ...]:
        targets = [
            torch.empty_like(maps) if needed else None
            for maps, needed in zip(ctx.like, ctx.needs_input_grad[:2], strict=True)
        ]

        @torch.no_grad()
        def write(index: int, gradients: list[Tensor | None]) -> None:
            for target, gradient in zip(targets, gradients, strict=True):
                if target is not None and gradient is not None:
                    points = torch.einsum("g,gmqc->mqc", upstream[: len(gradient)], gradient)
                    ctx.places[index].write(points.flatten(0, 1), target[index])

        parallel_map(ctx.gradients, write, upstream.device)
        return *targets, None, None, None, None


_Sample = tuple[Tensor, Encoded | None]


def _samples(values: Tensor, stored: Encoded | None) -> list[_Sample]:
    return [(each, stored and replace(stored, scale=stored.scale[index])) for index, each in enumerate(values.unbind())]


def points_in_boxes(
    boxes: Float[Tensor, "B M D"], parts: Float[Tensor, "Q 2"], enlarge_m: float = 0.0
) -> Float[Tensor, "B M Q 2"]:
    """Points (x, y) of boxes, in their metres.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, yaw in radians, ...
        parts: along the box's length and width, -0.5 .. 0.5 from one side to the other.
        enlarge_m: added to length and width on either side.
    """
    center, sides, yaw = boxes[..., None, :2], boxes[..., None, 3:5] + 2 * enlarge_m, boxes[..., None, 6]
    ahead, left = (parts * sides).unbind(-1)
    turned = torch.stack([ahead * yaw.cos() - left * yaw.sin(), ahead * yaw.sin() + left * yaw.cos()], dim=-1)
    return center + turned


def even_parts(along: int, across: int, device: torch.device) -> Float[Tensor, "Q 2"]:
    """A grid of points over a box, its corners among them."""
    parts = [torch.linspace(-0.5, 0.5, count, dtype=torch.float64, device=device) for count in (along, across)]
    return torch.cartesian_prod(*parts)
