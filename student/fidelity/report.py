"""A fidelity report as tables, a figure and files."""

import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import isnan
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic_core import to_json

from cache.geometry.views import REFLECTIONS
from cache.visualization.tables import Table
from student.fidelity.similarity import REGIONS, Similarity, total
from student.fidelity.study import LIVE, Comparison, FidelityReport
from student.fidelity.view_sets import BevTransform
from student.visualization.plots import draw_bar_groups
from student.visualization.scenes import COLOURS

ROTATION_EDGES_DEG = (0.0, 5.0, 10.0, 15.0, 20.0)
SCALE_EDGES = (0.0, 0.98, 1.02)

Groups = dict[str, list[Comparison]]


def tables(report: FidelityReport) -> tuple[Table, ...]:
    """Features by layer and region; the layer `head` by rotation, scale and flip; the loss; the head's detections."""
    return (
        _features(report),
        _grouped(report, "rotation, degrees", _binned(report, lambda m: abs(m.rotation_deg), ROTATION_EDGES_DEG)),
        _grouped(report, "scale", _binned(report, lambda m: m.scale, SCALE_EDGES)),
        _grouped(report, "flip", {n: [c for c in report.comparisons if c.transform.flip == n] for n in REFLECTIONS}),
        _losses(report),
        _detections(report),
    )


def write(report: FidelityReport, out: Path) -> tuple[Path, ...]:
    """Write fidelity.md, fidelity.json and fidelity.png to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "fidelity.md", out / "fidelity.json", out / "fidelity.png"
    paths[0].write_text("\n\n".join(table.markdown() for table in tables(report)) + "\n", encoding="utf-8")
    paths[1].write_bytes(to_json({"report": report, "tables": tables(report)}, indent=2, inf_nan_mode="null"))
    figure(report).savefig(paths[2], dpi=110)
    return paths


def figure(report: FidelityReport) -> Figure:
    """Errors in the foreground over the rotation and by region, and the head's mAP beside the live teacher's."""
    drawn = Figure(figsize=(15, 4.4), layout="constrained")
    by_angle, by_region, detections = drawn.subplots(1, 3)
    _draw_angles(by_angle, report)
    _draw_regions(by_region, report)
    _draw_map(detections, report)
    return drawn


def _by_view_set(comparisons: Iterable[Comparison]) -> Groups:
    groups: Groups = {}
    for each in comparisons:
        groups.setdefault(each.view_set, []).append(each)
    return groups


def _pooled(comparisons: Iterable[Comparison], layer: str = "head", region: str = REGIONS[0]) -> Similarity:
    return total([each.layers[layer][region] for each in comparisons])


def _number(value: float) -> str:
    return "-" if isnan(value) else f"{value:.3f}"


def _features(report: FidelityReport) -> Table:
    rows = []
    for name, comparisons in _by_view_set(report.comparisons).items():
        for layer in comparisons[0].layers:
            found = [_pooled(comparisons, layer, region) for region in REGIONS]
            numbers = [each.relative_error for each in found] + [each.cosine for each in found]
            rows.append((name, layer, *map(_number, numbers)))
    columns = ("views", "layer", *(f"error, {region}" for region in REGIONS), *(f"cosine, {r}" for r in REGIONS))
    return Table(title="Cached features against live ones", rows=tuple(rows), columns=columns)


def _grouped(report: FidelityReport, what: str, groups: Groups) -> Table:
    names = list(_by_view_set(report.comparisons))
    cells = {group: _by_view_set(comparisons) for group, comparisons in groups.items()}
    rows = tuple((group, *(_error_cell(found.get(name, [])) for name in names)) for group, found in cells.items())
    title = f"Error of the layer head in the foreground, by {what} (number of samples)"
    return Table(title=title, rows=rows, columns=(what, *names))


def _error_cell(comparisons: list[Comparison]) -> str:
    return f"{_number(_pooled(comparisons).relative_error)} ({len(comparisons)})" if comparisons else "-"


def _binned(report: FidelityReport, value: Callable[[BevTransform], float], edges: tuple[float, ...]) -> Groups:
    """The last bin has no end."""
    names = [f"{low:g} .. {high:g}" for low, high in pairwise(edges)] + [f"{edges[-1]:g} and more"]
    bins: Groups = {name: [] for name in names}
    for each in report.comparisons:
        bins[names[bisect_right(edges, value(each.transform)) - 1]].append(each)
    return bins


def _losses(report: FidelityReport) -> Table:
    rows = []
    for name, comparisons in _by_view_set(report.comparisons).items():
        losses = [each.loss for each in comparisons]
        cached, live = (sum(getattr(loss, side) for loss in losses) for side in ("cached", "live"))
        gradient = total([loss.gradient for loss in losses])
        rows.append((name, f"{cached / live - 1:+.3f}", _number(gradient.relative_error), _number(gradient.cosine)))
    columns = ("views", "loss, relative", "gradient, relative error", "gradient, cosine")
    return Table(title="The paper's term of a surrogate student", rows=tuple(rows), columns=columns)


def _detections(report: FidelityReport) -> Table:
    rows = []
    for name, (ours, theirs) in _scores(report).items():
        pairs = [(statistics.mean(cached), statistics.mean(live)) for cached, live in zip(ours, theirs, strict=True)]
        rows.append((name, *(cell for a, b in pairs for cell in (f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"))))
    columns = ("views", "mAP, cached", "mAP, live", "difference", "NDS, cached", "NDS, live", "difference")
    return Table(title="The teacher's head, mean over draws", rows=tuple(rows), columns=columns)


def _scores(report: FidelityReport) -> dict[str, tuple[list[list[float]], list[list[float]]]]:
    """By view set: mAP and NDS of each draw, with cached and with live features."""
    live = {(each.source, each.number): each.metrics for each in report.head if each.view_set == LIVE}
    scores = {}
    for name in _by_view_set(report.comparisons):
        ours = [each for each in report.head if each.view_set == name]
        theirs = [live[each.source, each.number] for each in ours]
        scores[name] = (
            [[each.metrics.mean_ap for each in ours], [each.metrics.nds for each in ours]],
            [[each.mean_ap for each in theirs], [each.nds for each in theirs]],
        )
    return scores


def _draw_angles(axes: Axes, report: FidelityReport) -> None:
    for (name, found), colour in zip(_by_view_set(report.comparisons).items(), COLOURS, strict=False):
        angles = [abs(each.transform.rotation_deg) for each in found]
        errors = [_pooled([each]).relative_error for each in found]
        axes.scatter(angles, errors, s=14, color=colour, label=name, alpha=0.7)
    axes.set(xlabel="rotation (degrees, absolute)", ylabel="relative error", title="layer head, foreground")
    axes.set_ylim(0, None)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def _draw_regions(axes: Axes, report: FidelityReport) -> None:
    groups = _by_view_set(report.comparisons)
    errors = {n: [_pooled(found, region=region).relative_error for region in REGIONS] for n, found in groups.items()}
    draw_bar_groups(axes, REGIONS, errors)
    axes.set(ylabel="relative error", title="layer head, by region")


def _draw_map(axes: Axes, report: FidelityReport) -> None:
    scores = _scores(report)
    for place, (ours, theirs) in enumerate(scores.values()):
        axes.scatter([place] * len(ours[0]), ours[0], color=COLOURS[place], s=22, zorder=2)
        axes.scatter([place + 0.2] * len(theirs[0]), theirs[0], color="grey", marker="_", s=120)
    axes.set(ylabel="mAP", title="the teacher's head: cached (dots), live (bars)", ylim=(0, None))
    axes.set_xticks(range(len(scores)), ["\n".join(wrap(name, 12)) for name in scores], fontsize=8)
    axes.grid(axis="y", alpha=0.25)
