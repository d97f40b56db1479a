"""Which cells count, and how much: DistillBEV's region decomposition and adaptive scaling.

Equations are numbered as in docs/objective.md: masks are equation 1, scales equation 3.

All masks are maps (B, H, W) of float32 without gradient, on the device of the boxes they come from.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from student.distill.boxes import RADII, first_box, gaussian, is_inside, sides_in_cells, stamp, whole_radius
from student.distill.term_configs import BackgroundMask, ForegroundMask, RadiusName, ScaleMask

Map = Float[Tensor, "B H W"]


@dataclass(frozen=True, kw_only=True)
class BoxMasks:
    """What the boxes say of each cell.

    foreground: 1 inside boxes, the context's weight in the ring around them, 0 elsewhere.
    fg_scale: sqrt(cell area / area of the first box) inside boxes and rings, 0 elsewhere.
    """

    foreground: Map
    fg_scale: Map


def box_masks(
    boxes: Float[Tensor, "B M D"], grid: BevGrid, context_cells: float = 0.0, context_weight: float = 0.0
) -> BoxMasks:
    """Foreground and its scale from boxes; cells count by their centres.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, yaw in radians, ...; boxes without a size cover nothing.
        context_cells: how many cells longer and wider a box is with its ring.
        context_weight: the ring's value; at 0 there is no ring.
    """
    index = first_box(boxes, grid)
    foreground = is_inside(index).float()
    if context_cells > 0 and context_weight > 0:
        grown = first_box(_grow(boxes, grid, context_cells), grid)
        foreground = torch.maximum(foreground, context_weight * is_inside(grown).float())
        index = torch.where(is_inside(index), index, grown)
    cell_area = grid.cell_m[0] * grid.cell_m[1]
    scale = (cell_area / (boxes[..., 3] * boxes[..., 4]).clamp(min=1e-12)).sqrt().float()
    # One more, empty "box" stands for the cells that no box covers: index -1.
    scale = torch.cat([scale, scale.new_zeros(len(boxes), 1)], dim=1)
    cells = torch.where(is_inside(index), index, boxes.shape[1]).flatten(1)
    return BoxMasks(foreground=foreground, fg_scale=scale.gather(1, cells).view_as(foreground))


def _grow(boxes: Float[Tensor, "B M D"], grid: BevGrid, cells: float) -> Float[Tensor, "B M D"]:
    larger = boxes.clone()
    larger[..., 3] += cells * grid.cell_m[0]
    larger[..., 4] += cells * grid.cell_m[1]
    # What has no size, the padding above all, gets no context either.
    return torch.where((boxes[..., 3:5] > 0).all(-1, keepdim=True), larger, boxes)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The boxes' reach beyond their edges: a Gaussian and a scale around each centre, on a square of the radius."""

    gaussian: Map
    scale: Map


def extension(
    boxes: Float[Tensor, "B M D"], grid: BevGrid, radius: RadiusName, scale: float = 1.0, overlap: float = 0.1
) -> Extension:
    """Gaussian (the largest where several meet) and extended scale 1 / ceil(h w) (likewise), h x w the box in cells.

    Args:
        scale: multiplies the radius of `maxwh`.
    """
    h, w = sides_in_cells(boxes, grid)
    reach = whole_radius(RADII[radius](h, w, overlap) * (scale if radius == "maxwh" else 1.0), min_radius=2)
    channel = torch.zeros_like(reach)
    share = 1.0 / (h * w).ceil().clamp(min=1.0)
    return Extension(
        gaussian=stamp(gaussian, boxes, reach, channel, 1, grid)[:, 0],
        scale=stamp(lambda y, x, r: share[..., None, None].expand(r.shape), boxes, reach, channel, 1, grid)[:, 0],
    )


def foreground(
    kind: ForegroundMask, inside: Map, spread: Map | None = None, gauss_weight: float = 0.5, bg_over_fg: float = 0.0
) -> Map:
    """The foreground mask of a kind.

    Args:
        inside: `BoxMasks.foreground`.
        spread: `Extension.gaussian`; every kind but `gt` needs it.
        gauss_weight: of the Gaussian in `gauss_plus_binary_clamp`.
        bg_over_fg: background weight over foreground weight, in `negative_linear_gauss_in_gt`.

    Raises:
        ConfigError: the kind needs `spread`.
    """
    if kind == "gt":
        return inside
    spread = _given(spread, f"foreground mask {kind!r}")
    wide = (spread != 0).float()
    match kind:
        case "gauss":
            return spread
        case "extended_binary":
            return wide
        case "gauss_plus_extended_binary":
            return spread + wide
        case "gauss_plus_extended_binary_clamp":
            return (spread + wide).clamp(max=1.0)
        case "gauss_plus_binary_clamp":
            return (gauss_weight * spread + (inside != 0).float()).clamp(max=1.0)
        case "gauss_in_gt":
            return inside * spread
        case "negative_linear_gauss_in_gt":
            return inside * (spread + bg_over_fg * (1 - spread))


def background(kind: BackgroundMask, foreground: Map) -> Map:
    """The background mask that goes with a foreground."""
    return (foreground == 0).float() if kind == "logical_not" else 1 - foreground


def bg_scale(taken: Float[Tensor, "B"], cells: int | Float[Tensor, "B"]) -> Float[Tensor, "B 1 1"]:
    """1 / the number of background cells of each sample; 0 where nothing is left.

    Args:
        taken: how many cells are not background.
        cells: how many there are; a number, or one for each sample.
    """
    return _inverse(cells - taken)[:, None, None]


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
        ConfigError: the kind needs `extended`.
    """
    of_boxes = _given(extended, f"scale mask {kind!r}") if kind.endswith("extend") else fg_scale
    match kind:
        case "combine_gt" | "combine_extend":
            both = torch.maximum(of_boxes, bg_scale)
            return both, both
        case "separate_gt" | "separate_extend":
            return of_boxes, bg_scale
        case "bg_only":
            return bg_scale, bg_scale
        case "none":
            return torch.ones_like(fg_scale), torch.ones_like(fg_scale)


def _given(wide: Map | None, who: str) -> Map:
    if wide is None:
        raise ConfigError(
            "a mask beyond boxes needs their extension", where=who, cure="Hand over a map of masks.extension()"
        )
    return wide
