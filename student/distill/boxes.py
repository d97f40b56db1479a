"""Ground-truth boxes on a BEV grid: which cells they cover, and Gaussians at their centres.

All boxes of a batch are drawn at once: no loop over boxes or cells, and no wait for the device.
"""

from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cache.geometry.grid import BevGrid
from student.distill.term_configs import RadiusName

_BITS = 62
"""Boxes in one 64-bit word of a cover; the sign bit stays free for borrowing."""
_TIE_CELLS = 1e-6
"""A centre nearer than this to a box's edge counts as outside."""


def pad_boxes(boxes: tuple[Float[Tensor, "_ 9"], ...]) -> Float[Tensor, "B M 9"]:
    """One tensor of B samples, each with as many boxes as the fullest; the padding has no size and covers nothing."""
    return pad_sequence([sample.double() for sample in boxes], batch_first=True)


def first_box(boxes: Float[Tensor, "B M D"], grid: BevGrid) -> Int[Tensor, "B H W"]:
    """Index of the first box whose rectangle, seen from above, holds a cell's centre; -1 where none does.

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


Sides = Float[Tensor, "*n"]


def _radius_centerpoint1(h: Sides, w: Sides, overlap: float) -> Sides:
    b, c = h + w, w * h * (1 - overlap) / (1 + overlap)
    return (b + (b**2 - 4 * c).sqrt()) / 2


def _radius_centerpoint2(h: Sides, w: Sides, overlap: float) -> Sides:
    b, c = 2 * (h + w), (1 - overlap) * w * h
    return (b + (b**2 - 16 * c).sqrt()) / 2


def _radius_centerpoint3(h: Sides, w: Sides, overlap: float) -> Sides:
    b, c = -2 * overlap * (h + w), (overlap - 1) * w * h
    return (b + (b**2 - 16 * overlap * c).sqrt()) / 2


RADII: dict[RadiusName, Callable[[Sides, Sides, float], Sides]] = {
    "centerpoint1": _radius_centerpoint1,
    "centerpoint2": _radius_centerpoint2,
    "centerpoint3": _radius_centerpoint3,
    "maxwh": lambda h, w, overlap: torch.maximum(h, w),
}
"""Radius in cells of a box of h x w cells: three ways a detection can overlap the truth just enough (CornerNet)."""


def heatmap_radius(h: Sides, w: Sides, overlap: float) -> Sides:
    """The radius that CenterPoint's targets use: the smallest of the three overlaps'."""
    three = [RADII[name](h, w, overlap) for name in ("centerpoint1", "centerpoint2", "centerpoint3")]
    return torch.stack(three).amin(dim=0)


def sides_in_cells(boxes: Float[Tensor, "B M D"], grid: BevGrid) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """(h, w): the boxes' dy and dx in cells, whatever their yaw, as CenterPoint takes them."""
    return boxes[..., 4] / grid.cell_m[1], boxes[..., 3] / grid.cell_m[0]


def whole_radius(radius: Float[Tensor, "B M"], min_radius: int) -> Int[Tensor, "B M"]:
    """The radius in whole cells, at least `min_radius`."""
    return radius.floor().clamp(min=min_radius).long()


def stamp(
    values: Callable[[Tensor, Tensor, Tensor], Tensor],
    boxes: Float[Tensor, "B M D"],
    radius: Int[Tensor, "B M"],
    channel: Int[Tensor, "B M"],
    channels: int,
    grid: BevGrid,
) -> Float[Tensor, "B K H W"]:
    """The largest, cell by cell, of a square pattern around every box's centre cell; 0 beyond all squares.

    Boxes without a size, or whose centre is outside the grid, leave no mark.

    Args:
        values: (row distance (B, M, R, 1), column distance (B, M, 1, C), radius (B, M, 1, 1)) -> (B, M, R, C).
        channel: which of the `channels` maps of its sample a box goes to.
    """
    height, width = grid.shape
    center_x = ((boxes[..., 0] - grid.x_range_m[0]) / grid.cell_m[0]).floor().long()
    center_y = ((boxes[..., 1] - grid.y_range_m[0]) / grid.cell_m[1]).floor().long()
    seen = (boxes[..., 3:5] > 0).all(-1) & _within(center_x, width) & _within(center_y, height)
    column = _window(center_x, radius, width)[:, :, None, :]
    row = _window(center_y, radius, height)[:, :, :, None]
    off_y, off_x = row - center_y[..., None, None], column - center_x[..., None, None]
    reach = radius[..., None, None]
    near = (off_y.abs() <= reach) & (off_x.abs() <= reach) & seen[..., None, None]
    drawn = near & _within(row, height) & _within(column, width)
    sample = torch.arange(len(boxes), device=boxes.device)[:, None]
    plane = (sample * channels + channel)[..., None, None]
    cell = (plane * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    painted = torch.where(drawn, values(off_y, off_x, reach), 0.0).float()
    canvas = painted.new_zeros(len(boxes) * channels * height * width)
    return canvas.scatter_reduce_(0, cell.flatten(), painted.flatten(), "amax").view(-1, channels, height, width)


def _within(index: Int[Tensor, "..."], size: int) -> Bool[Tensor, "..."]:
    return (index >= 0) & (index < size)


def _window(center: Int[Tensor, "B M"], radius: Int[Tensor, "B M"], size: int) -> Int[Tensor, "B M _"]:
    """The rows or columns that a box may touch. On the CPU only those within the largest radius; on a device, where
    looking at the radius would wait for it, all."""
    if center.device.type != "cpu" or radius.numel() == 0:
        return torch.arange(size, device=center.device).expand(*center.shape, size)
    reach = int(radius.max())
    return center[..., None] + torch.arange(-reach, reach + 1)


def gaussian(off_y: Tensor, off_x: Tensor, radius: Tensor) -> Tensor:
    """exp(-(x^2 + y^2) / 2 sigma^2), sigma a sixth of the square's side (CornerNet, section 3.2); any common shape."""
    scale = -18.0 / (2.0 * radius + 1.0) ** 2
    return torch.exp(scale * off_y**2) * torch.exp(scale * off_x**2)


def draw_heatmaps(
    boxes: Float[Tensor, "B M D"],
    channel: Int[Tensor, "B M"],
    channels: int,
    grid: BevGrid,
    overlap: float = 0.1,
    min_radius: int = 2,
) -> Float[Tensor, "B K H W"]:
    """Ground-truth heatmaps as CenterPoint draws them: 1 at each box's centre cell, falling off as a Gaussian."""
    radius = whole_radius(heatmap_radius(*sides_in_cells(boxes, grid), overlap), min_radius)
    return stamp(gaussian, boxes, radius, channel, channels, grid)


def is_inside(index: Int[Tensor, "B H W"]) -> Bool[Tensor, "B H W"]:
    """Where `first_box` found one."""
    return index >= 0
