"""A store as one HTML page: self-contained, without network; all text is escaped."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from cache.geometry.views import describe_views
from cache.spec import CodecSpec
from cache.store.batch import TeacherSample
from cache.store.reader import TeacherCache
from cache.visualization.html import environment
from cache.visualization.pictures import Map, energy, figure_uri, histogram, picture_uri
from cache.visualization.statistics import KEPT_VALUES, LayerCounts, SampleQuality, Survey, spread, survey
from cache.visualization.summary import statistics_table, store_tables
from cache.visualization.tables import Table


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
    found = survey(cache, samples, progress)
    path.write_text(page(cache, spread(cache.tokens, frames), found), encoding="utf-8")


def page(cache: TeacherCache, tokens: tuple[str, ...], found: Survey) -> str:
    """The page's HTML, with a gallery of some tokens; a map has the same colours in all of them."""
    maps = {token: _maps(cache, cache[token]) for token in tokens}
    names = next(iter(maps.values()), {})
    scales = {name: max(float(frame[name].max()) for frame in maps.values()) for name in names}
    return (
        environment()
        .get_template("report.html")
        .render(
            cache=cache,
            views=describe_views(cache.spec.views, cache.spec.drawn),
            scales=scales,
            frames={token: _pictures(frame, scales) for token, frame in maps.items()},
            tables=store_tables(cache),
            samples=len(found.samples),
            kept_values=KEPT_VALUES,
            statistics=statistics_table(found.statistics),
            histograms={
                name: _histograms(counts, cache.spec.layer(name).codec) for name, counts in found.layers.items()
            },
            expected=_expected(cache, found),
            worst={quality.token: _layers(cache, quality) for quality in found.worst(6)},
        )
    )


def _maps(cache: TeacherCache, sample: TeacherSample) -> dict[str, Map]:
    """The maps of the first view that the gallery's buttons choose from."""
    layers = {name: energy(encoded.decode()[0]) for name, encoded in sample.features.items()}
    classes = {
        f"class {name}": sample.heatmap[0, channel].float() / 255
        for channel, name in enumerate(cache.spec.teacher.classes)
    }
    strongest = torch.stack(list(classes.values())).amax(dim=0)
    return layers | {"all classes": strongest, "canvas mask": sample.canvas_mask[0].float()} | classes


def _pictures(maps: Mapping[str, Map], largest: Mapping[str, float]) -> dict[str, str]:
    return {name: picture_uri(values, largest=largest[name]) for name, values in maps.items()}


def _histograms(counts: LayerCounts, codec: CodecSpec) -> dict[str, str]:
    """The histogram of values, and that of codes if the codec has any."""
    charts = {"values": histogram(*np.histogram(np.concatenate(counts.kept), bins=80))}
    if codec.kind != "float16":
        signed = codec.kind == "signed"
        codes = np.arange(-codec.levels if signed else 0, codec.levels + 1)
        charts["codes"] = histogram(counts.codes[codes + 128 * signed], np.append(codes, codec.levels + 1) - 0.5)
    return {name: figure_uri(figure) for name, figure in charts.items()}


def _expected(cache: TeacherCache, found: Survey) -> Table:
    """The estimated signal-to-noise ratios beside those measured while writing, so that they can be judged."""
    rows = []
    for name in found.layers:
        ratios = [quality.sqnr_db[name] for quality in found.samples]
        report = cache.attributes.codec_report.get(name)
        measured = "not known yet" if report is None else _ratio(report.sqnr_db)
        rows.append((name, _ratio(float(np.min(ratios))), _ratio(float(np.median(ratios))), measured))
    columns = ("layer", "lowest expected", "median expected", "measured over the store")
    return Table(title="signal to rounding noise", columns=columns, rows=tuple(rows))


def _layers(cache: TeacherCache, quality: SampleQuality) -> dict[str, tuple[str, str]]:
    """The energy of each layer of a frame's first view, as a picture, and the ratio expected of its codes."""
    return {
        name: (picture_uri(energy(encoded.decode()[0]), cells=96), _ratio(quality.sqnr_db[name]))
        for name, encoded in cache[quality.token].features.items()
    }


def _ratio(sqnr_db: float | None) -> str:
    return "exact" if sqnr_db is None or np.isinf(sqnr_db) else f"{sqnr_db:.1f} dB"
