"""Renderings of evaluations, trainings, imports and distillation: tables, matplotlib figures, HTML for notebooks.

`%load_ext student.visualization` shows metrics and reports as HTML in a notebook, beside what `cache.visualization`
shows.
"""

from typing import Any

from cache import visualization
from student.evaluation.results import Results as Results
from student.evaluation.results import read_losses as read_losses
from student.evaluation.results import read_results as read_results
from student.evaluation.teacher_boxes import teacher_detections as teacher_detections
from student.visualization.distill import plot_cells as plot_cells
from student.visualization.distill import plot_regions as plot_regions
from student.visualization.html import SHOWN
from student.visualization.html import to_html as to_html
from student.visualization.plots import plot_error_histograms as plot_error_histograms
from student.visualization.plots import plot_losses as plot_losses
from student.visualization.plots import plot_metrics as plot_metrics
from student.visualization.plots import plot_precision_recall as plot_precision_recall
from student.visualization.plots import save_evaluation_plots as save_evaluation_plots
from student.visualization.scenes import plot_bev as plot_bev
from student.visualization.scenes import plot_bev_and_cameras as plot_bev_and_cameras
from student.visualization.scenes import plot_cameras as plot_cameras
from student.visualization.tables import import_table as import_table
from student.visualization.tables import metrics_table as metrics_table
from student.visualization.video import scene_pictures as scene_pictures
from student.visualization.video import write_video as write_video


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext student.visualization`)."""
    visualization.load_ipython_extension(ipython)
    visualization.register_html(ipython, SHOWN, to_html)
