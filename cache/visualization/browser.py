"""A notebook widget to browse a store by token, map and channel. Needs ipywidgets (the extra `notebook`)."""

import ipywidgets as widgets
from markupsafe import Markup

from cache.store.reader import TeacherCache, TeacherSample
from cache.visualization.pictures import Map, energy, picture_uri

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
        self._sample: TeacherSample = cache[cache.tokens[0]]
        names = [*self._sample.features, HEATMAP, CANVAS_MASK]
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
        """Number of channels of a map."""
        if name == HEATMAP:
            return len(self._cache.spec.teacher.classes)
        return 0 if name == CANVAS_MASK else self._cache.spec.layer(name).channels

    def _draw(self) -> None:
        values, description = self._chosen(self.map.value, self.channel.value)
        caption = f"{self._sample.token}: {description}; 0 .. {float(values.max()):.3g}"
        self.picture.value = str(PICTURE.format(picture_uri(values, cells=512), caption, self._size_px, caption))

    def _chosen(self, name: str, channel: int) -> tuple[Map, str]:
        if name == CANVAS_MASK:
            return self._sample.canvas_mask[self._view].float(), name
        if name == HEATMAP:
            values = self._sample.heatmap[self._view].float() / 255
            if channel == ALL:
                return values.amax(dim=0), "heatmap, maximum over classes"
            return values[channel], f"heatmap, {self._cache.spec.teacher.classes[channel]}"
        values = self._sample.features[name].decode()[self._view]
        if channel == ALL:
            return energy(values), f"{name}, mean over channels of the absolute value"
        return values[channel].abs(), f"{name}, channel {channel}, absolute value"

    def _repr_mimebundle_(self, **options: object) -> object:
        return self.widget._repr_mimebundle_(**options)
