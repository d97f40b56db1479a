"""A notebook widget to browse a store by token, map and channel. Needs ipywidgets (the extra `notebook`)."""

import ipywidgets as widgets
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from cache.store.reader import TeacherCache
from cache.visualization.pictures import energy, picture_uri

ALL = -1
"""The channel number of a layer's energy, and of the heatmap's maximum over classes."""
CANVAS_MASK, HEATMAP = "canvas mask", "heatmap"
PICTURE = Markup('<img src="{}" alt="{}" style="width:{}px;image-rendering:pixelated"/><div>{}</div>')


class CacheBrowser:
    """Sliders for token and channel, buttons for the map, and the picture; the last line of a cell displays it.

    Args:
        size_px: the picture's longer side.
        view: an index into the store's views.
    """

    def __init__(self, cache: TeacherCache, size_px: int = 480, view: int = 0) -> None:
        self._cache, self._size_px, self._view = cache, size_px, view
        names = [*(layer.name for layer in cache.spec.layers), HEATMAP, CANVAS_MASK]
        style = {"description_width": "70px"}
        wide = widgets.Layout(width=f"{size_px}px")
        self.token = widgets.IntSlider(0, 0, len(cache) - 1, description="token", style=style, layout=wide)
        self.map = widgets.ToggleButtons(options=names, style={"button_width": "auto"})
        self.channel = widgets.IntSlider(ALL, ALL, ALL, description="channel", style=style, layout=wide)
        self.picture = widgets.HTML()
        self.widget = widgets.VBox([self.map, self.token, self.channel, self.picture])
        for control in (self.token, self.map, self.channel):
            control.observe(self._draw, "value")
        self._draw()

    def _draw(self, _: object = None) -> None:
        token = self._cache.tokens[self.token.value]
        channels, captions = self._channels(token, self.map.value)
        self.channel.max = ALL + len(captions) - 1  # lowers the value too if need be
        values = channels[self.channel.value - ALL]
        caption = f"{token}: {captions[self.channel.value - ALL]}; 0 .. {float(values.max()):.3g}"
        self.picture.value = str(PICTURE.format(picture_uri(values, cells=512), caption, self._size_px, caption))

    def _channels(self, token: str, name: str) -> tuple[Float[Tensor, "C H W"], list[str]]:
        """A map's channels, the one that combines all of them first, and their captions."""
        sample = self._cache[token]
        if name == CANVAS_MASK:
            return sample.canvas_mask[self._view].float()[None], [name]
        if name == HEATMAP:
            values = sample.heatmap[self._view].float() / 255
            captions = [f"heatmap, {label}" for label in ("maximum over classes", *self._cache.spec.teacher.classes)]
            return torch.cat([values.amax(dim=0, keepdim=True), values]), captions
        values = sample.features[name].decode()[self._view]
        channels = [f"{name}, channel {channel}, absolute value" for channel in range(len(values))]
        captions = [f"{name}, mean over channels of the absolute value", *channels]
        return torch.cat([energy(values)[None], values.abs()]), captions

    def _repr_mimebundle_(self, **options: object) -> object:
        return self.widget._repr_mimebundle_(**options)
