"""Ground-truth boxes on a BEV grid: which cells they cover, all boxes of a batch at once and without a device wait."""

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cache.geometry.grid import BevGrid

_BITS = 62
"""Boxes in one 64-bit word; the sign bit stays free for borrowing."""
_TIE_CELLS = 1e-6
"""A cell centre nearer than this to a box's edge counts as outside."""


def pad_boxes(boxes: tuple[Float[Tensor, "_ 9"], ...]) -> Float[Tensor, "B M 9"]:
    """Boxes of B samples in one tensor, padded with boxes without a size, which cover nothing."""
    return pad_sequence([sample.double() for sample in boxes], batch_first=True)


def first_box(boxes: Float[Tensor, "B M D"], grid: BevGrid) -> Int[Tensor, "B H W"]:
    """Index of the first box whose BEV rectangle contains a cell's centre; -1 where none does.

    Every box is one interval of columns in each row. A word of a cell holds one bit for each box: bit m is added where
    box m's interval begins and taken away where it ends, so that a running sum along the row leaves the covering
    boxes' bits, and the lowest one is the first box.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, yaw in radians, ...
    """
    batch, count, _ = boxes.shape
    height, width = grid.shape
    start, end = _column_intervals(boxes, grid)
    box = torch.arange(count, device=boxes.device)
    words = torch.zeros(batch, -(-count // _BITS) or 1, height, width + 1, dtype=torch.int64, device=boxes.device)
    bit = (torch.ones_like(box) << (box % _BITS))[None, :, None].expand_as(start)
    sample = torch.arange(batch, device=boxes.device)[:, None, None]
    row = torch.arange(height, device=boxes.device)
    begins = ((sample * words.shape[1] + (box // _BITS)[:, None]) * height + row) * (width + 1)
    words.view(-1).scatter_add_(0, (begins + start).flatten(), bit.flatten())
    words.view(-1).scatter_add_(0, (begins + end).flatten(), -bit.flatten())
    covers = words.cumsum_(-1)[..., :width]
    lowest = torch.frexp((covers & -covers).double()).exponent  # one more than the bit's place
    offset = torch.arange(words.shape[1], dtype=torch.int32, device=boxes.device)[:, None, None] * _BITS - 1
    index = reduce(torch.minimum, torch.where(covers == 0, count, lowest + offset).unbind(dim=1)).long()
    return torch.where(index == count, -1, index)


def _column_intervals(
    boxes: Float[Tensor, "B M D"], grid: BevGrid
) -> tuple[Int[Tensor, "B M H"], Int[Tensor, "B M H"]]:
    """First covered column of each row, and the one after the last; equal where a box does not cross the row."""
    height, width = grid.shape
    rows = torch.arange(height, dtype=torch.float64, device=boxes.device)
    x, y, _, dx, dy, _, yaw = boxes[..., :7, None].double().unbind(2)
    ahead = grid.y_range_m[0] + (rows + 0.5) * grid.cell_m[1] - y
    cos, sin = torch.cos(yaw), torch.sin(yaw)
    # A cell centre at (u, ahead) from the box's centre is inside where |u cos + ahead sin| < dx/2 and
    # |ahead cos - u sin| < dy/2: an interval of u each.
    low_x, high_x = _solve(cos, ahead * sin, dx / 2)
    low_y, high_y = _solve(-sin, ahead * cos, dy / 2)
    low = (torch.maximum(low_x, low_y) + x - grid.x_range_m[0]) / grid.cell_m[0] - 0.5
    high = (torch.minimum(high_x, high_y) + x - grid.x_range_m[0]) / grid.cell_m[0] - 0.5
    start = (low + _TIE_CELLS).floor().add(1).clamp(0, width).long()
    end = (high - _TIE_CELLS).ceil().clamp(0, width).long()
    return start, torch.maximum(start, end)


def _solve(slope: Tensor, offset: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """The open interval of u with |slope u + offset| < half; all or nothing where the slope is 0."""
    flat = slope.abs() < _TIE_CELLS
    slope = torch.where(flat, 1.0, slope)
    all_or_nothing = torch.where(offset.abs() < half - _TIE_CELLS, torch.inf, -torch.inf)
    middle, reach = -offset / slope, half / slope.abs()
    return torch.where(flat, -all_or_nothing, middle - reach), torch.where(flat, all_or_nothing, middle + reach)
