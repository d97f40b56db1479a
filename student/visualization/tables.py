"""Reports of evaluations and imports as tables."""

from cache.visualization.tables import Table
from student.converters.convert import ImportReport
from student.evaluation.metrics import Metrics


def metrics_table(metrics: Metrics) -> Table:
    """mAP and NDS, the five mean errors, the average precision of each class."""
    rows = (
        ("mAP", f"{metrics.mean_ap:.4f}"),
        ("NDS", f"{metrics.nds:.4f}"),
        *((name, f"{error:.3f}") for name, error in metrics.errors.items()),
        *((f"AP {name}", f"{precision:.3f}") for name, precision in metrics.class_ap.items()),
    )
    return Table(title="nuScenes detection", columns=("metric", "value"), rows=rows)


def import_table(report: ImportReport) -> Table:
    """One row for each tensor of the file and of the detector."""
    rows = tuple(
        (row.status, row.public, row.ours, " x ".join(map(str, row.shape)) or "scalar", row.note) for row in report.rows
    )
    columns = ("status", "in the file", "in the detector", "shape", "note")
    return Table(title=str(report.source), columns=columns, rows=rows)
