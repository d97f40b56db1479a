"""HTML of metrics and reports, registered with `cache.visualization.to_html`."""

from markupsafe import Markup

from cache.visualization.html import to_html
from student.converters.convert import ImportReport
from student.evaluation.metrics import Metrics
from student.training.plan import TrainingPlan
from student.training.profile import StepProfile
from student.visualization.tables import import_table, metrics_table
from student.visualization.training import plan_tables, profile_table

SHOWN = tuple(f"{shown.__module__}.{shown.__name__}" for shown in (ImportReport, Metrics, StepProfile, TrainingPlan))
"""Full names of the classes with HTML, beside those of `cache.visualization`."""


@to_html.register
def _(shown: Metrics) -> Markup:
    return to_html(metrics_table(shown))


@to_html.register
def _(shown: ImportReport) -> Markup:
    return to_html(import_table(shown))


@to_html.register
def _(shown: StepProfile) -> Markup:
    return to_html(profile_table(shown))


@to_html.register
def _(shown: TrainingPlan) -> Markup:
    return Markup("").join(map(to_html, plan_tables(shown)))
