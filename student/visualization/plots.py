"""Plots of evaluations and trainings, one or several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cache.nuscenes.frames import Frames
from cache.visualization.statistics import spread
from student.evaluation.results import Losses, Results, read_results
from student.visualization.scenes import COLOURS, plot_bev

ERRORS = {
    "translation_m": ("translation (m)", 2.0),
    "scale": ("scale (1 - IoU)", 1.0),
    "orientation_rad": ("orientation (rad)", float(np.pi)),
    "velocity_mps": ("velocity (m/s)", 5.0),
}
"""A TruePositive's errors: label, and the end of the last bin of the histogram."""


def plot_precision_recall(results: Sequence[Results], distance_m: float = 2.0) -> Figure:
    """Plot precision over recall for each class; of a single evaluation, the other distances as thin lines.

    Args:
        distance_m: within which a detection counts.
    """
    classes = _classes_by_ap(results)
    figure = Figure(figsize=(15, 6.2), layout="constrained")
    all_axes = figure.subplots(2, -(-len(classes) // 2), sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(all_axes.flat, classes, strict=False):
        for each, colour in zip(results, COLOURS, strict=False):
            distances_m = [of for label, of in each.curves if label == name and (len(results) == 1 or of == distance_m)]
            for of in distances_m:
                _draw_curve(axes, each, name, of, colour, main=of == distance_m)
        axes.set(title=name, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper right", title="AP over distances", title_fontsize=7)
    for axes in all_axes[-1]:
        axes.set_xlabel("recall")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("precision")
    figure.suptitle(f"a detection counts within {distance_m:g} m")
    return figure


def _classes_by_ap(results: Sequence[Results]) -> list[str]:
    """Class names by descending best AP."""
    return sorted(results[0].metrics.class_ap, key=lambda name: -max(each.metrics.class_ap[name] for each in results))


def _draw_curve(axes: Axes, result: Results, name: str, distance_m: float, colour: str, main: bool) -> None:
    curve = result.curves[name, distance_m]
    reached = int(np.flatnonzero(curve.precision).max(initial=0)) + 1
    label = f"{result.name}: {result.metrics.class_ap[name]:.3f}" if main else None
    weight, strength = (1.8, 1.0) if main else (0.8, 0.45)
    axes.plot(
        curve.recall[:reached], curve.precision[:reached], color=colour, linewidth=weight, alpha=strength, label=label
    )


def plot_error_histograms(results: Sequence[Results]) -> Figure:
    """Plot histograms of the true positives' errors, one line for each evaluation."""
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    for axes, (error, (label, last)) in zip(figure.subplots(1, len(ERRORS)), ERRORS.items(), strict=True):
        for each, colour in zip(results, COLOURS, strict=False):
            values = np.asarray([getattr(match, error) for match in each.true_positives], dtype=np.float64)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            bins, shares = np.linspace(0, last, 33), np.full(len(values), 1 / len(values))
            axes.hist(np.minimum(values, last), bins, weights=shares, histtype="step", color=colour, linewidth=1.6)
            median = float(np.median(values))
            axes.axvline(median, color=colour, linestyle=":", label=f"{each.name}: median {median:.2f}")
        axes.set(xlabel=label, xlim=(0, last))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("share of true positives")
    counts = ", ".join(f"{each.name} {len(each.true_positives):,}" for each in results)
    figure.suptitle(f"true positives within 2 m: {counts}; the last bin holds all that is beyond", fontsize=10)
    return figure


def plot_metrics(results: Sequence[Results]) -> Figure:
    """Plot the metrics of several evaluations side by side: mAP and NDS, mean errors, AP of each class."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    scores, errors, classes = figure.subplots(1, 3, width_ratios=(1.2, 2.2, 4))
    draw_bar_groups(scores, ["mAP", "NDS"], {each.name: [each.metrics.mean_ap, each.metrics.nds] for each in results})
    labels = list(results[0].metrics.errors)
    draw_bar_groups(errors, labels, {each.name: list(each.metrics.errors.values()) for each in results})
    names = _classes_by_ap(results)
    shown = [name.replace("_", "\n") for name in names]
    draw_bar_groups(classes, shown, {each.name: [each.metrics.class_ap[name] for name in names] for each in results})
    scores.set_title("higher is better")
    errors.set_title("mean errors of true positives, lower is better")
    classes.set_title("average precision by class")
    classes.legend(fontsize=9)
    return figure


def draw_bar_groups(axes: Axes, labels: Sequence[str], groups: Mapping[str, Sequence[float]]) -> None:
    """Draw one bar for each label and group; groups have the colours of COLOURS."""
    width = 0.8 / len(groups)
    for place, (name, values) in enumerate(groups.items()):
        offset = (place - (len(groups) - 1) / 2) * width
        bars = axes.bar(np.arange(len(labels)) + offset, values, width, color=COLOURS[place % len(COLOURS)], label=name)
        if len(labels) * len(groups) <= 8:
            axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks(np.arange(len(labels)), labels, fontsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def plot_losses(runs: Mapping[str, Mapping[str, Losses]]) -> Figure:
    """Plot running means of losses over steps: detection losses on one axis, distillation terms on the other.

    Colours match those of results in the same order; a run without losses still takes its colour.
    """
    distils = any(term.startswith("distill/") for losses in runs.values() for term in losses)
    figure = Figure(figsize=(13 if distils else 7, 4.4), layout="constrained")
    own, *terms = figure.subplots(1, 2 if distils else 1, squeeze=False)[0]
    styles = ("-", ":", "--", "-.")
    for (run, losses), colour in zip(runs.items(), COLOURS, strict=False):
        alone = [term for term in losses if not term.startswith("distill/")]
        for term, style in zip(alone, styles, strict=False):
            _draw_losses(own, losses[term], f"{run}, {term}", color=colour, linestyle=style)
        for term in losses.keys() - alone:
            _draw_losses(terms[0], losses[term], f"{run}, {term.removeprefix('distill/')}")
    for axes, title in zip((own, *terms), ("the student's own losses", "distillation terms"), strict=False):
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper right")
    return figure


def _draw_losses(axes: Axes, losses: Losses, label: str, **style: Any) -> None:
    width = max(1, len(losses.values) // 40)
    axes.plot(losses.steps[width - 1 :], smooth(losses.values, width), label=label, linewidth=1.2, **style)


def smooth(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "_"]:
    """Running mean."""
    return np.convolve(values, np.ones(width) / width, mode="valid")


def save_evaluation_plots(folder: Path, frames: Frames, overlays: int = 4) -> list[Path]:
    """Save plots of an evaluation to FOLDER/plots: curves, errors, and boxes over the points of some frames.

    Args:
        overlays: number of frames, evenly spaced.

    Raises:
        DataError: a file of the evaluation or a frame's LiDAR file cannot be read.
    """
    results = read_results(folder)
    figures = {"precision_recall": plot_precision_recall([results]), "errors": plot_error_histograms([results])}
    for token in spread(frames.tokens, overlays):
        frame = frames[token]
        figures[f"boxes_{token}"] = plot_bev(frame, {results.name: results.boxes(frame)})
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(plots / f"{name}.png", dpi=110)
    return [plots / f"{name}.png" for name in figures]
