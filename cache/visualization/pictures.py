"""Maps over a BEV grid as figures and data URIs: row 0, the lowest y, is at the bottom.

matplotlib is imported inside functions: reading a store does not need it.
"""

import base64
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cache.geometry.views import sample_label
from cache.store.batch import TeacherSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Map = Float[Tensor, "_ _"]
Palette = Literal["magma", "viridis", "gray"]

COLOURS = 64
"""Of a picture in a page: 256 look the same and take twice the bytes."""


def energy(features: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n H W"]:
    """The mean over channels of the absolute value."""
    return features.abs().mean(dim=-3)


def maps(sample: TeacherSample, view: int = 0) -> dict[str, Map]:
    """A sample's maps, (H, W) each: the layers' energies, the heatmap's maximum over classes and the canvas mask.

    Args:
        view: an index into the sample's views.
    """
    layers = {
        f"{name}: {' x '.join(map(str, encoded.values.shape[-3:]))}": energy(encoded.decode()[view])
        for name, encoded in sample.features.items()
    }
    return layers | {
        "heatmap, max over classes": sample.heatmap[view].amax(dim=0).float() / 255,
        "canvas mask": sample.canvas_mask[view].float(),
    }


def plot(sample: TeacherSample, view: int = 0) -> "Figure":
    """A sample's maps side by side.

    Args:
        view: an index into the sample's views.
    """
    return plot_maps(maps(sample, view), f"token {sample_label(sample.token, sample.views[view])}")


def plot_maps(shown: Mapping[str, Map], title: str, palette: Palette = "magma", columns: int = 6) -> "Figure":
    """Maps in rows, each from its own smallest to its own largest value."""
    from matplotlib.figure import Figure

    wide, high = min(columns, len(shown)), -(-len(shown) // columns)
    figure = Figure(figsize=(3.3 * wide, 3.3 * high + 0.3), layout="constrained")
    for place, (name, values) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(high, wide, place)
        axes.imshow(values.float().numpy(), origin="lower", cmap=palette)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    figure.suptitle(title, fontsize=9)
    return figure


def histogram(counts: Int[np.ndarray, "n"], edges: Float[np.ndarray, "n+1"]) -> "Figure":
    """Counts between n + 1 edges; heights are logarithms of 1 + count, so that a count of 1 can still be seen.

    The colours are legible on light and on dark pages; there is no background.
    """
    from matplotlib.figure import Figure

    ink, tallest = "#858d9c", int(counts.max())
    figure = Figure(figsize=(4.3, 1.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_yscale("function", functions=(np.log1p, np.expm1))
    axes.stairs(counts, edges, fill=True, color="#b0579b")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(1, tallest))
    axes.set_yticks([tallest], [f"{tallest:,}"])
    axes.minorticks_off()
    axes.tick_params(labelsize=8, colors=ink)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink)
    return figure


def figure_uri(figure: "Figure") -> str:
    """A figure as a data URI of a PNG; the same figure gives the same bytes."""
    return _png_uri(lambda file: figure.savefig(file, format="png", dpi=160, metadata={"Software": None}))


def picture_uri(values: Map, cells: int = 160, largest: float | None = None, palette: Palette = "magma") -> str:
    """A map as a data URI of a PNG with `COLOURS` colours.

    Args:
        cells: about how many pixels the longer side gets: cells are averaged, or repeated.
        largest: the value of the brightest colour; the map's own largest by default. 0 is the darkest.
    """
    small = _resampled(values, cells)
    top = max(float(small.max()) if largest is None else largest, 1e-12)
    index = (small / top * (COLOURS - 1)).clamp(0, COLOURS - 1).round().to(torch.uint8).flip(0).numpy()
    image = Image.fromarray(index)
    image.putpalette(_colours(palette).tobytes())
    return _png_uri(lambda file: image.save(file, "PNG", optimize=True))


def _png_uri(save: Callable[[BinaryIO], object]) -> str:
    file = io.BytesIO()
    save(file)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _resampled(values: Map, cells: int) -> Map:
    """Averaged in blocks, or repeated, so that the longer side comes near to a number of cells."""
    side = max(values.shape)
    if side > cells:
        return F.avg_pool2d(values[None, None], -(-side // cells), ceil_mode=True)[0, 0]
    repeats = cells // side
    return values.repeat_interleave(repeats, dim=0).repeat_interleave(repeats, dim=1)


@lru_cache(maxsize=3)
def _colours(palette: Palette) -> UInt8[np.ndarray, "_ 3"]:
    import matplotlib

    return np.ascontiguousarray(matplotlib.colormaps[palette](np.linspace(0, 1, COLOURS), bytes=True)[:, :3])
