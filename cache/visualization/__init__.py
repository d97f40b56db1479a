"""Renderings of stores, samples and reports: HTML, figures, tables, a page, a notebook's browser.

`%load_ext cache.visualization` shows stores, samples, batches, specs and tables as HTML in a notebook. Importing this
package loads neither torch nor matplotlib.
"""

import pkgutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.visualization.browser import CacheBrowser as CacheBrowser
    from cache.visualization.html import to_html as to_html
    from cache.visualization.pictures import energy as energy
    from cache.visualization.pictures import maps as maps
    from cache.visualization.pictures import plot as plot
    from cache.visualization.pictures import plot_maps as plot_maps
    from cache.visualization.report import write_html as write_html
    from cache.visualization.statistics import survey as survey
    from cache.visualization.summary import layer_table as layer_table
    from cache.visualization.summary import statistics_table as statistics_table
    from cache.visualization.summary import store_tables as store_tables
    from cache.visualization.tables import Table as Table

_PUBLIC = {
    "browser": ("CacheBrowser",),
    "html": ("to_html",),
    "pictures": ("energy", "maps", "plot", "plot_maps"),
    "report": ("write_html",),
    "statistics": ("survey",),
    "summary": ("layer_table", "statistics_table", "store_tables"),
    "tables": ("Table",),
}
"""Public names by module; each is imported when it is first used."""

_CACHE = __name__.rpartition(".")[0]
SHOWN = tuple(
    f"{_CACHE}.{name}"
    for name in (
        "spec.CacheSpec",
        "store.batch.TeacherBatch",
        "store.batch.TeacherSample",
        "store.reader.TeacherCache",
        "visualization.tables.Table",
    )
)
"""The classes that a notebook shows as HTML."""


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            return pkgutil.resolve_name(f"{__name__}.{module}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(ipython: Any) -> None:
    """Show this package's objects as HTML in a notebook (`%load_ext cache.visualization`)."""
    register_html(ipython, SHOWN, lambda shown: pkgutil.resolve_name(f"{__name__}.html:to_html")(shown))


def register_html(ipython: Any, names: Iterable[str], to_html: Callable[[Any], str]) -> None:
    """Show objects of some classes as HTML in a notebook.

    Args:
        names: the classes' full names; their modules are not imported.
    """
    formatter = ipython.display_formatter.formatters["text/html"]
    for name in names:
        formatter.for_type_by_name(*name.rsplit(".", 1), to_html)
