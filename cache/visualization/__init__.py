"""Renderings of stores, samples and reports: HTML, figures, tables, a page, a notebook's browser.

`%load_ext cache.visualization` shows stores, samples, batches, specs and tables as HTML in a notebook. Importing this
package loads neither torch nor matplotlib.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

_FILES = {
    "browser": ("CacheBrowser",),
    "html": ("to_html",),
    "pictures": ("energy", "maps", "plot", "plot_maps"),
    "report": ("write_html",),
    "statistics": ("survey",),
    "summary": ("layer_table", "statistics_table", "store_tables"),
    "tables": ("Table",),
}
"""Public names by the module that holds them."""

_HOME = {name: module for module, names in _FILES.items() for name in names}

SHOWN = (
    "cache.spec.CacheSpec",
    "cache.store.batch.TeacherBatch",
    "cache.store.batch.TeacherSample",
    "cache.store.reader.TeacherCache",
    "cache.visualization.tables.Table",
)
"""The classes that a notebook shows as HTML."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext cache.visualization`)."""
    register_html(ipython, SHOWN, lambda shown: importlib.import_module("cache.visualization.html").to_html(shown))


def register_html(ipython: Any, names: Iterable[str], to_html: Callable[[Any], str]) -> None:
    """Show objects of some classes as HTML in a notebook.

    Args:
        names: the classes' full names; their modules are not imported.
    """
    formatter = ipython.display_formatter.formatters["text/html"]
    for name in names:
        formatter.for_type_by_name(*name.rsplit(".", 1), to_html)
