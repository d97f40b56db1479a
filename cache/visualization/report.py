"""A store as one page for a browser: self-contained, without network; everything in it is escaped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cache.geometry.views import describe_views
from cache.spec import CodecSpec
from cache.store.batch import TeacherSample
from cache.store.reader import TeacherCache
from cache.visualization.charts import histogram
from cache.visualization.markup import Html, element
from cache.visualization.pictures import Map, energy, picture_uri
from cache.visualization.statistics import KEPT_VALUES, LayerCounts, SampleQuality, Survey, spread, survey
from cache.visualization.summary import statistics_table
from cache.visualization.tables import Table

_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the page may load: nothing from anywhere."""


def write_html(
    cache: TeacherCache,
    path: Path,
    frames: int = 12,
    samples: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Write the page.

    Args:
        frames: how many frames the gallery shows, evenly spaced through the store.
        samples: how many the statistics and the ranking read, evenly spaced too.
        progress: called with (done, total) samples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page(cache, spread(cache.tokens, frames), survey(cache, samples, progress))
    path.write_text(f"<!doctype html>\n{text}", encoding="utf-8")


def page(cache: TeacherCache, shown: tuple[str, ...], found: Survey) -> Html:
    """The page's HTML, with a gallery of some tokens."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{cache.path.name}: what a store holds"),
        element("style", Html((_HERE / "report.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        _header(cache),
        _gallery(cache, shown),
        _section("Identity and sizes", *(table.html() for table in cache.tables())),
        _layers(cache, found),
        _worst(cache, found),
        element("script", Html((_HERE / "report.js").read_text(encoding="utf-8"))),
    )
    return element("html", head, body, lang="en")


def _section(title: str, *parts: object) -> Html:
    return element("section", element("h2", title), *parts)


def _header(cache: TeacherCache) -> Html:
    spec = cache.spec
    state = "complete" if cache.attributes.sealed else "not complete"
    facts = (
        f"{len(cache):,} samples of {spec.data.version}",
        state,
        f"{spec.teacher.weights} weights",
        f"seen as {describe_views(spec.views, spec.drawn)}",
        f"fingerprint {spec.fingerprint[:12]}",
    )
    badges = (element("span", fact, class_="badge") for fact in facts)
    return element("header", element("h1", cache.path.name), element("p", spec.teacher.name), element("p", *badges))


def _gallery(cache: TeacherCache, tokens: tuple[str, ...]) -> Html:
    """The frames, all with the same map; a button for each map."""
    if not tokens:
        return _section("Frames", element("p", "No sample is committed yet."))
    maps = {token: _maps(cache, cache[token]) for token in tokens}
    names = list(maps[tokens[0]])
    largest = {name: max(float(frame[name].max()) for frame in maps.values()) for name in names}
    buttons = (
        element("button", name, type="button", value=name, aria_pressed=str(not place).lower())
        for place, name in enumerate(names)
    )
    scales = (
        element("span", "0", element("i"), f"{largest[name]:.3g}", data_map=name, hidden=True if place else None)
        for place, name in enumerate(names)
    )
    frames = (_frame(token, maps[token], largest) for token in tokens)
    note = (
        f"{len(tokens)} frames, evenly spaced through the store, seen as {cache.spec.views[0]}. Layers show the mean "
        "over channels of the absolute value, heatmaps the probability. Up is +y; "
        "all frames share a map's colour scale. A click enlarges a frame."
    )
    return _section(
        "Frames",
        element("p", note),
        element("div", *buttons, id="maps", role="group", aria_label="map"),
        element("div", *scales, id="scale"),
        element("div", *frames, id="gallery"),
    )


def _maps(cache: TeacherCache, sample: TeacherSample) -> dict[str, Map]:
    """What the gallery switches between, of the first view."""
    layers = {name: energy(encoded.decode()[0]) for name, encoded in sample.features.items()}
    classes = {
        f"class {name}": sample.heatmap[0, channel].float() / 255
        for channel, name in enumerate(cache.spec.teacher.classes)
    }
    strongest = torch.stack(list(classes.values())).amax(dim=0)
    return layers | {"all classes": strongest, "canvas mask": sample.canvas_mask[0].float()} | classes


def _frame(token: str, maps: dict[str, Map], largest: dict[str, float]) -> Html:
    images = []
    for place, (name, values) in enumerate(maps.items()):
        source, hidden = picture_uri(values, largest=largest[name]), True if place else None
        images.append(element("img", src=source, alt=f"{name} of {token}", data_map=name, hidden=hidden))
    return element("figure", *images, element("figcaption", token))


def _worst(cache: TeacherCache, found: Survey, count: int = 6) -> Html:
    """The frames that the codec hurts most, as far as the store itself can tell."""
    note = (
        "The store keeps what the codec lost for each shard, not for each frame, and the teacher's own numbers are "
        "gone. Ranked here is the ratio to be expected of rounding alone: signal over step² / 12 for every value that "
        f"is not 0, computed from the stored codes and steps of {len(found.samples)} frames evenly spaced through the "
        "store. A frame's rank is that of its lowest layer."
    )
    rows = (_worst_row(cache, quality) for quality in found.worst(count))
    return _section(
        "Frames with the coarsest codes",
        element("p", note),
        _expected(cache, found).html(),
        element("div", *rows, class_="pairs"),
    )


def _expected(cache: TeacherCache, found: Survey) -> Table:
    """The estimate beside what was measured while writing, so that it can be judged."""
    rows = []
    for name in found.layers:
        ratios = [quality.sqnr_db[name] for quality in found.samples]
        report = cache.attributes.codec_report.get(name)
        measured = "not known yet" if report is None else _ratio(report.sqnr_db)
        rows.append((name, _ratio(float(np.min(ratios))), _ratio(float(np.median(ratios))), measured))
    columns = ("layer", "lowest expected", "median expected", "measured over the store")
    return Table(title="signal to rounding noise", columns=columns, rows=tuple(rows))


def _worst_row(cache: TeacherCache, quality: SampleQuality) -> Html:
    features = cache[quality.token].features
    images = (
        element(
            "figure",
            element("img", src=picture_uri(energy(encoded.decode()[0]), cells=96), alt=f"{name} of {quality.token}"),
            element("figcaption", f"{name}: {_ratio(quality.sqnr_db[name])}"),
        )
        for name, encoded in features.items()
    )
    return element("div", element("h3", quality.token), *images, class_="row")


def _ratio(sqnr_db: float | None) -> str:
    return "exact" if sqnr_db is None or np.isinf(sqnr_db) else f"{sqnr_db:.1f} dB"


def _layers(cache: TeacherCache, found: Survey) -> Html:
    note = (
        f"Of {len(found.samples)} frames evenly spaced through the store; at most {KEPT_VALUES:,} values of each. "
        "Heights are logarithms of counts."
    )
    charts = (
        element("div", element("h3", name), *_charts(counts, cache.spec.layer(name).codec), class_="row")
        for name, counts in found.layers.items()
    )
    return _section("Values and codes", element("p", note), statistics_table(found.statistics).html(), *charts)


def _charts(counts: LayerCounts, codec: CodecSpec) -> list[Html]:
    """The histogram of values, and that of codes where there are some."""
    heights, edges = np.histogram(np.concatenate(counts.kept), bins=80)
    charts = [histogram(heights, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", "values")]
    if codec.kind != "float16":
        lowest = -codec.levels if codec.kind == "signed" else 0
        first = 128 + lowest if codec.kind == "signed" else 0
        codes = counts.codes[first : first + codec.levels - lowest + 1]
        charts.append(histogram(codes, str(lowest), str(codec.levels), "codes"))
    return charts
