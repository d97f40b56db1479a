"""A store to scrub through in a notebook: tokens, maps and channels. Needs ipywidgets (the extra `notebook`)."""

import ipywidgets as widgets

from cache.store.reader import TeacherCache, TeacherSample
from cache.visualization.markup import element, join
from cache.visualization.pictures import Map, energy, picture_uri

ALL = -1
"""The channel that stands for all: a layer's energy, the heatmap's strongest class."""


class CacheBrowser:
    """Sliders for token and channel, a choice of the map, and the picture; the last line of a cell shows it.

    Args:
        size_px: the picture's longer side.
        view: an index into the store's views.
    """

    def __init__(self, cache: TeacherCache, size_px: int = 480, view: int = 0) -> None:
        self._cache, self._size_px, self._view = cache, size_px, view
        self._sample: TeacherSample = cache[cache.tokens[0]]
        names = [*self._sample.features, "heatmap", "canvas mask"]
        style = {"description_width": "70px"}
        wide = widgets.Layout(width=f"{size_px}px")
        self.token = widgets.IntSlider(0, 0, len(cache) - 1, description="token", style=style, layout=wide)
        self.map = widgets.ToggleButtons(options=names, style={"button_width": "auto"})
        self.channel = widgets.IntSlider(ALL, ALL, ALL, description="channel", style=style, layout=wide)
        self.picture = widgets.HTML()
        self.widget = widgets.VBox([self.map, self.token, self.channel, self.picture])
        self.token.observe(self._on_token, "value")
        self.map.observe(self._on_map, "value")
        self.channel.observe(lambda _: self._draw(), "value")
        self._on_map(None)

    def _on_token(self, _: object) -> None:
        self._sample = self._cache[self._cache.tokens[self.token.value]]
        self._draw()

    def _on_map(self, _: object) -> None:
        last = self._channels(self.map.value) - 1
        self.channel.value = min(self.channel.value, last)
        self.channel.max = last
        self._draw()

    def _channels(self, name: str) -> int:
        """How many channels a map has to choose from."""
        if name == "heatmap":
            return len(self._cache.spec.teacher.classes)
        return 0 if name == "canvas mask" else self._cache.spec.layer(name).channels

    def _draw(self) -> None:
        values, what = self._shown(self.map.value, self.channel.value)
        style = f"width:{self._size_px}px;image-rendering:pixelated"
        caption = f"{self._sample.token}: {what}; 0 .. {float(values.max()):.3g}"
        image = element("img", src=picture_uri(values, cells=512), alt=caption, style=style)
        self.picture.value = str(join(image, element("div", caption)))

    def _shown(self, name: str, channel: int) -> tuple[Map, str]:
        if name == "canvas mask":
            return self._sample.canvas_mask[self._view].float(), name
        if name == "heatmap":
            values = self._sample.heatmap[self._view].float() / 255
            if channel == ALL:
                return values.amax(dim=0), "heatmap, strongest class"
            return values[channel], f"heatmap, {self._cache.spec.teacher.classes[channel]}"
        values = self._sample.features[name].decode()[self._view]
        if channel == ALL:
            return energy(values), f"{name}, mean over channels of the absolute value"
        return values[channel].abs(), f"{name}, channel {channel}, absolute value"

    def _repr_mimebundle_(self, **options: object) -> object:
        return self.widget._repr_mimebundle_(**options)
