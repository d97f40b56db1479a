"""Renderings of evaluations, trainings, imports and distillation: tables and matplotlib figures.

`%load_ext student.visualization` shows metrics and reports as HTML in a notebook, beside what
`cache.visualization` shows.
"""

import importlib
from typing import Any

from cache import visualization

SHOWN = ("student.converters.convert.ImportReport", "student.evaluation.metrics.Metrics")
"""The classes that a notebook shows as HTML, beside those of `cache.visualization`."""


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext student.visualization`)."""
    visualization.load_ipython_extension(ipython)
    visualization.register_html(
        ipython, SHOWN, lambda shown: importlib.import_module("student.visualization.html").to_html(shown)
    )
