"""Renderings of evaluations, trainings, imports and distillation: tables, matplotlib figures, HTML for notebooks.

`%load_ext student.visualization` shows metrics and reports as HTML in a notebook, beside what `cache.visualization`
shows.
"""

from typing import Any

from cache import visualization
from student.evaluation.results import Results, read_losses, read_results
from student.evaluation.teacher_boxes import teacher_detections
from student.visualization.distill import plot_cells, plot_regions
from student.visualization.html import SHOWN, to_html
from student.visualization.plots import (
    plot_error_histograms,
    plot_losses,
    plot_metrics,
    plot_precision_recall,
    save_evaluation_plots,
)
from student.visualization.scenes import plot_bev, plot_bev_and_cameras, plot_cameras
from student.visualization.tables import import_table, metrics_table

__all__ = [
    "Results",
    "import_table",
    "metrics_table",
    "plot_bev",
    "plot_bev_and_cameras",
    "plot_cameras",
    "plot_cells",
    "plot_error_histograms",
    "plot_losses",
    "plot_metrics",
    "plot_precision_recall",
    "plot_regions",
    "read_losses",
    "read_results",
    "save_evaluation_plots",
    "teacher_detections",
    "to_html",
]


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext student.visualization`)."""
    visualization.load_ipython_extension(ipython)
    visualization.register_html(ipython, SHOWN, to_html)
