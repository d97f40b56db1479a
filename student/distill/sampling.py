"""Features at points of boxes, bilinear: few cells are read, and of a stored teacher only these are decoded."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.store.codec import Encoded
from student.distill.feature_stats import full_precision
from student.distill.head_maps import in_cells


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

    def sample(self, features: Float[Tensor, "B C H W"] | Encoded) -> Float[Tensor, "B P C"]:
        """The features at the points; 0 at points that are not inside."""
        values = features.values if isinstance(features, Encoded) else features
        flat, (batch, points, _) = values.flatten(2), self.index.shape
        # One gather for all corners: its gradient is one tensor of the features' size.
        read = flat.gather(2, self.index.view(batch, 1, -1).expand(-1, flat.shape[1], -1))
        if isinstance(features, Encoded):
            read = replace(features, values=read[..., None]).decode()[..., 0]
        read = full_precision(read)
        weighted = read * self.weight.to(read.dtype).view(batch, 1, -1)
        return weighted.unflatten(2, (points, 4)).sum(dim=-1).mT


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
