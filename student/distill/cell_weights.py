"""Weights of BEV cells by region for fgd: foreground, background, false positives and non-empty cells."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from cache.config import Strict
from cache.geometry.grid import BevGrid
from student.distill.gaussians import RadiusName
from student.distill.masks import (
    BackgroundMask,
    ForegroundMask,
    ScaleMask,
    background,
    bg_scale,
    box_masks,
    extension,
    foreground,
    region_share,
    scales,
)
from student.distill.regions import Region, RegionScale, region_scale

Map = Float[Tensor, "B H W"]


class CellWeightConfig(Strict):
    """Masks and scales of the regions (docs/objective.md, equations 1 to 3)."""

    foreground_mask: ForegroundMask = "gt"
    background_mask: BackgroundMask = "logical_not"
    scale_mask: ScaleMask = "combine_gt"
    radius: RadiusName = "centerpoint1"
    radius_scale: PositiveFloat = 1.0
    """Factor on the radius `maxwh`."""
    gauss_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the Gaussian in `gauss_plus_binary_clamp`."""
    context_cells: Annotated[float, Field(ge=0)] = 0.0
    """How many cells longer and wider a box is with its context ring; 0 for none."""
    context_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The foreground's value in the context ring."""
    fp_scale: RegionScale = "average"


@dataclass(frozen=True, kw_only=True)
class CellWeights:
    """Weights (mask times scale, before attention) of the cells of each region; 0 outside the region.

    false_positive, non_empty: None where the region is not used; its cells are background then.
    objects: cells with a foreground mask above 0. false_positive_mask: the false positives.
    """

    foreground: Map
    background: Map
    false_positive: Map | None
    non_empty: Map | None
    objects: Region
    false_positive_mask: Region


def weigh_cells(
    config: CellWeightConfig,
    boxes: Float[Tensor, "B M D"],
    grid: BevGrid,
    false_positives: Region | None = None,
    occupied: Region | None = None,
    bg_over_fg: float = 0.0,
    valid_mask: Region | None = None,
) -> CellWeights:
    """Assign every valid cell of a batch to one region and weigh it.

    Args:
        boxes: x, y, z, dx, dy, dz, yaw, ...; padding has no size.
        false_positives: cells where a network predicts an object without reason; foreground takes precedence.
        occupied: cells that contain points; foreground and false positives take precedence.
        bg_over_fg: background weight over foreground weight, for `negative_linear_gauss_in_gt`.
        valid_mask: the valid cells; the others are in no region and in no region's number of cells.
    """
    covered = box_masks(boxes, grid, config.context_cells, config.context_weight)
    wide = extension(boxes, grid, config.radius, config.radius_scale) if config.foreground_mask != "gt" else None
    gaussians, extended = (None, None) if wide is None else (wide.gaussian, wide.scale)
    objects = foreground(config.foreground_mask, covered.foreground, gaussians, config.gauss_weight, bg_over_fg)
    if valid_mask is None:
        valid_mask = torch.ones_like(objects, dtype=torch.bool)
    objects = objects * valid_mask
    free, none = valid_mask & (objects == 0), torch.zeros_like(valid_mask)
    false_positive_mask = none if false_positives is None else free & false_positives
    non_empty = none if occupied is None else free & occupied & ~false_positive_mask
    other_cells = (valid_mask & (covered.foreground != 0)).sum(dim=(1, 2)).float()
    if false_positives is not None or occupied is not None:
        other_cells = objects.sum(dim=(1, 2)) + (false_positive_mask | non_empty).sum(dim=(1, 2))
    share = bg_scale(other_cells, valid_mask.sum(dim=(1, 2)).float()).expand_as(objects)
    fg_scale, rest_scale = scales(config.scale_mask, covered.fg_scale, extended, share)
    rest = background(config.background_mask, objects) * (valid_mask & ~(false_positive_mask | non_empty))
    return CellWeights(
        foreground=objects * fg_scale,
        background=rest * rest_scale,
        false_positive=None if false_positives is None else region_scale(config.fp_scale, false_positive_mask),
        non_empty=None if occupied is None else region_share(non_empty),
        objects=objects != 0,
        false_positive_mask=false_positive_mask,
    )
