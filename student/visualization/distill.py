"""Figures of regions and cell weights on the BEV plane, in metres: x to the right, y up."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.cell_weights import CellWeights
from student.distill.regions import Regions
from student.models.nms import footprint_corners

REGION_COLOURS = {
    "true_negative": "#f2f2f2",
    "true_positive": "#2a9d5c",
    "false_positive": "#e4632d",
    "false_negative": "#3b6fb5",
}


def plot_regions(
    regions: Regions, grid: BevGrid, boxes: Float[Tensor, "M D"] | None = None, sample: int = 0, title: str = ""
) -> Figure:
    """One sample's TP, FP, FN and TN cells, with the boxes' outlines.

    Args:
        boxes: x, y, z, dx, dy, dz in metres, yaw in radians, ... of this sample.
    """
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.add_subplot()
    layers = [getattr(regions, name)[sample].cpu().numpy() for name in REGION_COLOURS]
    index = np.argmax(np.stack(layers), axis=0)
    axes.imshow(index, cmap=ListedColormap(list(REGION_COLOURS.values())), vmin=0, vmax=3, **_image_options(grid))
    counts = [int(layer.sum()) for layer in layers]
    handles = [
        Patch(facecolor=colour, edgecolor="grey", label=f"{name.replace('_', ' ')}: {count} cells")
        for (name, colour), count in zip(REGION_COLOURS.items(), counts, strict=True)
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=8)
    _label(axes, grid, boxes, title or "Regions of the heatmap")
    return figure


def plot_cells(
    cells: CellWeights,
    attention: Float[Tensor, "B H W"],
    grid: BevGrid,
    boxes: Float[Tensor, "M D"] | None = None,
    sample: int = 0,
) -> Figure:
    """One sample's cell weights by region, before attention and on a logarithmic scale, and the attention."""
    figure = Figure(figsize=(12.0, 6.6), layout="constrained")
    maps = {
        "foreground": cells.foreground,
        "false positives": cells.false_positive,
        "background": cells.background,
        "non-empty cells": cells.non_empty,
        "spatial attention": attention,
    }
    shown = {name: values for name, values in maps.items() if values is not None}
    rows = 2 if len(shown) > 3 else 1
    for place, (name, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, -(-len(shown) // rows), place)
        weights = values[sample].detach().cpu().double().numpy()
        with np.errstate(divide="ignore"):
            image = axes.imshow(
                np.where(weights > 0, np.log10(weights), np.nan), cmap="viridis", **_image_options(grid)
            )
        figure.colorbar(image, ax=axes, shrink=0.8, label="log10 of weight")
        _label(axes, grid, boxes, name)
    return figure


def _image_options(grid: BevGrid) -> dict[str, Any]:
    return {"extent": (*grid.x_range_m, *grid.y_range_m), "origin": "lower", "interpolation": "nearest"}


def _label(axes: Axes, grid: BevGrid, boxes: Float[Tensor, "M D"] | None, title: str) -> None:
    for corners in [] if boxes is None else box_outlines(boxes).cpu().numpy():
        axes.plot(*corners.T, color="black", linewidth=0.8)
    axes.set(title=title, xlabel=f"x in m ({grid.frame} frame)", ylabel="y in m")
    axes.set(xlim=grid.x_range_m, ylim=grid.y_range_m)


def box_outlines(boxes: Float[Tensor, "M D"]) -> Float[Tensor, "M 5 2"]:
    """The BEV corners of boxes in metres; the first is repeated at the end."""
    corners = torch.from_numpy(footprint_corners(boxes[:, [0, 1, 3, 4, 6]].detach().cpu().numpy()))
    return torch.cat([corners, corners[:, :1]], dim=1).to(boxes)
