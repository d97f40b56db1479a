"""HTML of metrics and reports, registered with `cache.visualization.to_html`."""

from markupsafe import Markup

from cache.visualization.html import to_html
from student.converters.convert import ImportReport
from student.evaluation.metrics import Metrics
from student.visualization.tables import import_table, metrics_table

__all__ = ["to_html"]


@to_html.register
def _(shown: Metrics) -> Markup:
    return to_html(metrics_table(shown))


@to_html.register
def _(shown: ImportReport) -> Markup:
    return to_html(import_table(shown))
