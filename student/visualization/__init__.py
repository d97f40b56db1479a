"""Renderings of evaluations, trainings, imports and distillation: tables and matplotlib figures.

`%load_ext student.visualization` shows metrics and reports as HTML in a notebook, beside what
`cache.visualization` shows.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cache import visualization

if TYPE_CHECKING:
    from student.evaluation.results import Results as Results
    from student.evaluation.results import read_losses as read_losses
    from student.evaluation.results import read_results as read_results
    from student.evaluation.teacher_boxes import teacher_detections as teacher_detections
    from student.visualization.distill import plot_cells as plot_cells
    from student.visualization.distill import plot_regions as plot_regions
    from student.visualization.plots import plot_error_histograms as plot_error_histograms
    from student.visualization.plots import plot_losses as plot_losses
    from student.visualization.plots import plot_metrics as plot_metrics
    from student.visualization.plots import plot_precision_recall as plot_precision_recall
    from student.visualization.plots import save_evaluation_plots as save_evaluation_plots
    from student.visualization.scenes import plot_bev as plot_bev
    from student.visualization.scenes import plot_bev_and_cameras as plot_bev_and_cameras
    from student.visualization.scenes import plot_cameras as plot_cameras
    from student.visualization.tables import metrics_table as metrics_table

_PUBLIC = {
    "student.evaluation.results": ("Results", "read_losses", "read_results"),
    "student.evaluation.teacher_boxes": ("teacher_detections",),
    "student.visualization.distill": ("plot_cells", "plot_regions"),
    "student.visualization.plots": (
        "plot_error_histograms",
        "plot_losses",
        "plot_metrics",
        "plot_precision_recall",
        "save_evaluation_plots",
    ),
    "student.visualization.scenes": ("plot_bev", "plot_bev_and_cameras", "plot_cameras"),
    "student.visualization.tables": ("metrics_table",),
}
"""Public names by the module that holds them, with what they draw: results, losses and detections, read back."""

_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

SHOWN = ("student.converters.convert.ImportReport", "student.evaluation.metrics.Metrics")
"""The classes that a notebook shows as HTML, beside those of `cache.visualization`."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext student.visualization`)."""
    visualization.load_ipython_extension(ipython)
    visualization.register_html(
        ipython, SHOWN, lambda shown: importlib.import_module("student.visualization.html").to_html(shown)
    )
