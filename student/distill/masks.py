"""Masks (docs/objective.md, equation 1) and adaptive scales (equation 3) of BEV cells, from boxes.

All are float32 maps (B, H, W) without gradient, on the device of their boxes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from student.distill.boxes import first_box
from student.distill.gaussians import RadiusName, box_sides, draw_at_boxes, gaussian, named_radius

ForegroundMask = Literal[
    "gt",
    "gauss",
    "extended_binary",
    "gauss_plus_extended_binary",
    "gauss_plus_extended_binary_clamp",
    "gauss_plus_binary_clamp",
    "gauss_in_gt",
    "negative_linear_gauss_in_gt",
]
BackgroundMask = Literal["logical_not", "1minus"]
ScaleMask = Literal["none", "combine_gt", "separate_gt", "combine_extend", "separate_extend", "bg_only"]
Map = Float[Tensor, "B H W"]


@dataclass(frozen=True, kw_only=True)
class BoxMasks:
    """Foreground and scale of the cells that boxes cover.

    foreground: 1 inside boxes, the context's weight in the ring around them, 0 elsewhere.
    fg_scale: sqrt(cell area / area of the first box) inside boxes and rings, 0 elsewhere.
    """

    foreground: Map
    fg_scale: Map


def box_masks(
    boxes: Float[Tensor, "B M D"], grid: BevGrid, context_cells: float = 0.0, context_weight: float = 0.0
) -> BoxMasks:
    """Foreground mask and scale of boxes; a box covers the cells whose centres it contains.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, yaw in radians, ...; boxes without a size cover nothing.
        context_cells: how many cells longer and wider a box is with its context ring.
        context_weight: the ring's value; 0 for no ring.
    """
    index = first_box(boxes, grid)
    foreground = (index >= 0).float()
    if context_cells > 0 and context_weight > 0:
        grown = first_box(_grow(boxes, grid, context_cells), grid)
        foreground = torch.maximum(foreground, context_weight * (grown >= 0).float())
        index = torch.where(index >= 0, index, grown)
    cell_area = grid.cell_m[0] * grid.cell_m[1]
    scale = (cell_area / (boxes[..., 3] * boxes[..., 4]).clamp(min=1e-12)).sqrt().float()
    # An additional, empty box stands for the cells that no box covers (index -1).
    scale = torch.cat([scale, scale.new_zeros(len(boxes), 1)], dim=1)
    cells = torch.where(index >= 0, index, boxes.shape[1]).flatten(1)
    return BoxMasks(foreground=foreground, fg_scale=scale.gather(1, cells).view_as(foreground))


def _grow(boxes: Float[Tensor, "B M D"], grid: BevGrid, cells: float) -> Float[Tensor, "B M D"]:
    larger = boxes.clone()
    larger[..., 3] += cells * grid.cell_m[0]
    larger[..., 4] += cells * grid.cell_m[1]
    # Boxes without a size, padding above all, get no context.
    return torch.where((boxes[..., 3:5] > 0).all(-1, keepdim=True), larger, boxes)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A Gaussian and a scale on the square of a radius around each box's centre."""

    gaussian: Map
    scale: Map


def extension(
    boxes: Float[Tensor, "B M D"], grid: BevGrid, radius: RadiusName, scale: float = 1.0, overlap: float = 0.1
) -> Extension:
    """Gaussian and extended scale 1 / ceil(h w), h x w the box in cells; the largest where several boxes meet.

    Args:
        scale: multiplies the radius of `maxwh`.
    """
    length, width = box_sides(boxes, grid)
    reach = named_radius(radius, length, width, overlap) * (scale if radius == "maxwh" else 1.0)
    channel = torch.zeros_like(reach, dtype=torch.long)
    share = 1.0 / (length * width).ceil().clamp(min=1.0).flatten()
    gaussians = draw_at_boxes(gaussian, boxes, reach, channel, 1, grid)[:, 0]
    shares = draw_at_boxes(
        lambda rows, columns, _: share[:, None, None].expand(-1, rows.shape[1], columns.shape[1]),
        *(boxes, reach, channel, 1, grid),
    )
    return Extension(gaussian=gaussians, scale=shares[:, 0])


def foreground(
    kind: ForegroundMask, boxes: Map, gaussians: Map | None = None, gauss_weight: float = 0.5, bg_over_fg: float = 0.0
) -> Map:
    """The foreground mask of a kind.

    Args:
        boxes: `BoxMasks.foreground`.
        gaussians: `Extension.gaussian`; required by every kind but `gt`.
        gauss_weight: of the Gaussian in `gauss_plus_binary_clamp`.
        bg_over_fg: background weight over foreground weight, in `negative_linear_gauss_in_gt`.

    Raises:
        ConfigError: the kind requires `gaussians`.
    """
    if kind == "gt":
        return boxes
    gaussians = _require_extension(gaussians, f"foreground mask {kind!r}")
    extended = (gaussians != 0).float()
    match kind:
        case "gauss":
            return gaussians
        case "extended_binary":
            return extended
        case "gauss_plus_extended_binary":
            return gaussians + extended
        case "gauss_plus_extended_binary_clamp":
            return (gaussians + extended).clamp(max=1.0)
        case "gauss_plus_binary_clamp":
            return (gauss_weight * gaussians + (boxes != 0).float()).clamp(max=1.0)
        case "gauss_in_gt":
            return boxes * gaussians
        case "negative_linear_gauss_in_gt":
            return boxes * (gaussians + bg_over_fg * (1 - gaussians))


def background(kind: BackgroundMask, foreground: Map) -> Map:
    """The background mask of a foreground mask."""
    return (foreground == 0).float() if kind == "logical_not" else 1 - foreground


def bg_scale(other_cells: Float[Tensor, "B"], cells: int | Float[Tensor, "B"]) -> Float[Tensor, "B 1 1"]:
    """1 / the number of background cells of each sample (`cells` less the `other_cells`); 0 where there are none."""
    return _inverse(cells - other_cells)[:, None, None]


def region_share(region: Bool[Tensor, "B H W"]) -> Map:
    """`average` scale: 1 / the number of cells of the region in its sample, inside the region; else 0."""
    return region.float() * _inverse(region.sum(dim=(1, 2)).float())[:, None, None]


def _inverse(count: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    return torch.where(count > 0, 1 / count.clamp(min=1e-12), 0.0)


def scales(kind: ScaleMask, fg_scale: Map, extended: Map | None, bg_scale: Map) -> tuple[Map, Map]:
    """The scales of foreground and background (equation 3; `combine_gt` is the recipe's).

    Args:
        fg_scale: `BoxMasks.fg_scale`.
        extended: `Extension.scale`, for the kinds that end in `_extend`.
        bg_scale: broadcast to (B, H, W).

    Raises:
        ConfigError: the kind requires `extended`.
    """
    of_boxes = _require_extension(extended, f"scale mask {kind!r}") if kind.endswith("extend") else fg_scale
    if kind.startswith("separate"):
        return of_boxes, bg_scale
    if kind == "none":
        both = torch.ones_like(fg_scale)
    else:
        both = bg_scale if kind == "bg_only" else torch.maximum(of_boxes, bg_scale)
    return both, both


def _require_extension(extension: Map | None, where: str) -> Map:
    if extension is None:
        raise ConfigError(
            "a mask beyond boxes needs their extension", where=where, cure="Pass a map of masks.extension()"
        )
    return extension
