"""CenterPoint's Gaussian targets: the radius of a box, and Gaussians around box centres, without a device wait.

Radii are computed in the dtype of the boxes' sides, so that a caller decides how ties between whole radii fall.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.geometry.grid import BevGrid

RadiusName = Literal["centerpoint1", "centerpoint2", "centerpoint3", "maxwh"]
Cells = Float[Tensor, "*n"]


def overlap_radii(length: Cells, width: Cells, overlap: float) -> tuple[Cells, Cells, Cells]:
    """How many cells a box's corner may move for the box to overlap by `overlap`: three cases (CornerNet, 3.2).

    The roots are halved where they should be divided by 2 a, as in every published implementation.
    """
    total, area = length + width, length * width
    cases = (
        (1, total, area * (1 - overlap) / (1 + overlap)),
        (4, 2 * total, area * (1 - overlap)),
        (4 * overlap, -2 * overlap * total, area * (overlap - 1)),
    )
    first, second, third = ((b + (b * b - 4 * a * c).sqrt()) / 2 for a, b, c in cases)
    return first, second, third


def gaussian_radius(length: Cells, width: Cells, overlap: float) -> Cells:
    """The radius of CenterPoint's targets in cells: the least of the three cases."""
    return torch.stack(overlap_radii(length, width, overlap)).amin(dim=0)


def named_radius(name: RadiusName, length: Cells, width: Cells, overlap: float = 0.1) -> Cells:
    """A radius in cells by its name: one of the three cases, or the longer side."""
    if name == "maxwh":
        return torch.maximum(length, width)
    return overlap_radii(length, width, overlap)[int(name[-1]) - 1]


def gaussian(
    row_offset: Int[Tensor, "M R"], column_offset: Int[Tensor, "M C"], radius: Float[Tensor, "M 1"]
) -> Float[Tensor, "M R C"]:
    """exp(-(x^2 + y^2) / 2 sigma^2) with sigma = (2 radius + 1) / 6."""
    down, across = ((-0.5 * (o / ((2 * radius + 1) / 6)) ** 2).exp() for o in (row_offset, column_offset))
    return down[:, :, None] * across[:, None, :]


def draw_patches(
    values: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "M R C"]],
    plane: Int[Tensor, "M"],
    row: Int[Tensor, "M"],
    column: Int[Tensor, "M"],
    radius: Float[Tensor, "M"],
    shape: tuple[int, int, int],
) -> Float[Tensor, "P H W"]:
    """The largest, at each cell of each plane, of square patterns around centre cells; 0 beyond all squares.

    Args:
        values: (row offset (M, R), column offset (M, C), radius (M, 1)), in cells -> (M, R, C).
        radius: whole numbers: a square spans 2 radius + 1 cells, and none where the radius is below 0.
    """
    planes, height, width = shape
    rows, columns = (_window(center, radius, size) for center, size in ((row, height), (column, width)))
    row_offset, column_offset, reach = rows - row[:, None], columns - column[:, None], radius[:, None]
    draws_row, draws_column = (
        (offset.abs() <= reach) & (at >= 0) & (at < size)
        for offset, at, size in ((row_offset, rows, height), (column_offset, columns, width))
    )
    drawn = draws_row[:, :, None] & draws_column[:, None, :]
    patches = torch.where(drawn, values(row_offset, column_offset, reach), 0.0).float()
    cells = (plane[:, None] * height + rows.clamp(0, height - 1))[:, :, None] * width
    cells = cells + columns.clamp(0, width - 1)[:, None, :]
    canvas = patches.new_zeros(planes * height * width)
    return canvas.scatter_reduce_(0, cells.flatten(), patches.flatten(), "amax").view(shape)


def _window(center: Int[Tensor, "M"], radius: Float[Tensor, "M"], size: int) -> Int[Tensor, "M _"]:
    """Rows or columns that a square may touch: on the CPU those within the largest radius, on a device all.

    Reading the radius would wait for a device.
    """
    if center.device.type != "cpu" or radius.numel() == 0:
        return torch.arange(size, device=center.device).expand(len(center), size)
    reach = max(0, int(radius.max()))
    return center[:, None] + torch.arange(-reach, reach + 1)


def box_sides(boxes: Float[Tensor, "B M D"], grid: BevGrid) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """Length dx and width dy of boxes in cells, whatever their yaw, as CenterPoint takes them."""
    return boxes[..., 3] / grid.cell_m[0], boxes[..., 4] / grid.cell_m[1]


def draw_at_boxes(
    values: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "_ R C"]],
    boxes: Float[Tensor, "B M D"],
    radius: Float[Tensor, "B M"],
    channel: Int[Tensor, "B M"],
    channels: int,
    grid: BevGrid,
    min_radius: int = 2,
) -> Float[Tensor, "B K H W"]:
    """`draw_patches` around box centres; boxes without a size, or with a centre outside the grid, are left out.

    Args:
        radius: in cells; rounded down, and at least `min_radius`.
        channel: which of the `channels` maps of its sample a box is drawn in.
    """
    height, width = grid.shape
    column = ((boxes[..., 0] - grid.x_range_m[0]) / grid.cell_m[0]).floor().long()
    row = ((boxes[..., 1] - grid.y_range_m[0]) / grid.cell_m[1]).floor().long()
    drawn = (boxes[..., 3:5] > 0).all(-1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    radius = torch.where(drawn, radius.floor().clamp(min=min_radius), -1.0).float()
    plane = torch.arange(len(boxes), device=boxes.device)[:, None] * channels + channel
    shape = len(boxes) * channels, height, width
    planes = draw_patches(values, plane.flatten(), row.flatten(), column.flatten(), radius.flatten(), shape)
    return planes.unflatten(0, (len(boxes), channels))


def draw_heatmaps(
    boxes: Float[Tensor, "B M D"],
    channel: Int[Tensor, "B M"],
    channels: int,
    grid: BevGrid,
    overlap: float = 0.1,
    min_radius: int = 2,
) -> Float[Tensor, "B K H W"]:
    """Ground-truth heatmaps as in CenterPoint: 1 at each box's centre cell and a Gaussian around it.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, ...
        channel: the heatmap channel of each box.
    """
    radius = gaussian_radius(*box_sides(boxes, grid), overlap)
    return draw_at_boxes(gaussian, boxes, radius, channel, channels, grid, min_radius)


def focal_loss(probability: Float[Tensor, "*n"], target: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Gaussian focal loss of each element (CornerNet, equation 1; alpha = 2, beta = 4); 1 marks a peak.

    Args:
        probability: above 0 and below 1.
    """
    found = -probability.log() * (1 - probability) ** 2
    spared = -(1 - probability).log() * probability**2 * (1 - target) ** 4
    return torch.where(target == 1, found, spared)
