"""Maps over a BEV grid as pictures: row 0, the lowest y, at the bottom. Matplotlib is imported where it is used."""

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cache.store.codec import Encoded
from cache.visualization.markup import Html, element, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Map = Float[Tensor, "_ _"]
Palette = Literal["magma", "viridis", "gray"]

COLOURS = 64
"""Of a small picture: no eye counts more steps, and 256 take half as many bytes again."""


def energy(features: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n H W"]:
    """The mean over channels of the absolute value."""
    return features.abs().mean(dim=-3)


def maps_of(
    features: Mapping[str, Encoded], heatmap: UInt8[Tensor, "_ K _ _"], canvas_mask: Tensor, view: int
) -> dict[str, Map]:
    """One view of a sample in pictures: each layer's energy, the heatmap's strongest class, canvas mask (V, H, W)."""
    layers = {
        f"{name}: {' x '.join(map(str, encoded.values.shape[-3:]))}": energy(encoded.decode()[view])
        for name, encoded in features.items()
    }
    return layers | {
        "heatmap, max over classes": heatmap[view].amax(dim=0).float() / 255,
        "canvas mask": canvas_mask[view].float(),
    }


def draw_maps(maps: Mapping[str, Map], title: str, palette: Palette = "magma", columns: int = 6) -> "Figure":
    """Maps in rows, each from its own least to its own largest value."""
    from matplotlib.figure import Figure

    wide, high = min(columns, len(maps)), -(-len(maps) // columns)
    figure = Figure(figsize=(3.3 * wide, 3.3 * high + 0.3), layout="constrained")
    for place, (name, values) in enumerate(maps.items(), start=1):
        axes = figure.add_subplot(high, wide, place)
        axes.imshow(values.float().numpy(), origin="lower", cmap=palette)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    figure.suptitle(title, fontsize=9)
    return figure


def thumbnails(maps: Mapping[str, Map], cells: int = 128) -> Html:
    """A row of small pictures with their names."""
    style = "display:inline-block;margin:6px 10px 6px 0;font-size:11px"
    picture = "display:block;width:150px;height:150px;object-fit:contain;image-rendering:pixelated"
    return join(
        *(
            element("span", element("img", src=picture_uri(values, cells), alt=name, style=picture), name, style=style)
            for name, values in maps.items()
        )
    )


def picture_uri(values: Map, cells: int = 160, largest: float | None = None, palette: Palette = "magma") -> str:
    """A map as a data URI: a PNG of `COLOURS` colours.

    Args:
        cells: about how many pixels the longer side gets: cells are averaged, or repeated.
        largest: the value of the brightest colour; the map's own largest by default. 0 is the darkest.
    """
    small = _resampled(values, cells)
    top = max(float(small.max()) if largest is None else largest, 1e-12)
    index = (small / top * (COLOURS - 1)).clamp(0, COLOURS - 1).round().to(torch.uint8).flip(0).numpy()
    image = Image.fromarray(index)
    image.putpalette(_colours(palette).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
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
