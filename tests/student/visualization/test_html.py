"""`%load_ext student.visualization`: metrics and reports are HTML in a notebook."""

from pathlib import Path

import pytest

from cache.visualization import Table
from student.converters.convert import ImportReport, Row
from student.evaluation.metrics import Metrics
from student.evaluation.results import Results
from student.visualization import load_ipython_extension
from student.visualization.html import to_html


def test_metrics_and_reports_are_html_in_a_notebook(evaluations: dict[str, tuple[Results, Metrics]]) -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    load_ipython_extension(shell)
    _, metrics = evaluations["good"]
    row = Row(status="missing", public="", ours="head.scale", shape=(2,))
    report = ImportReport(source=Path("public.pth"), format="BEVDet", boxes="no boxes", rows=(row,))
    for shown, text in ((metrics, f"{metrics.mean_ap:.4f}"), (report, "head.scale")):
        data, _ = shell.display_formatter.format(shown)
        assert data["text/html"] == to_html(shown)
        assert text in data["text/html"]
    data, _ = shell.display_formatter.format(Table(title="facts", rows=(("a", "b"),)))
    assert "facts" in data["text/html"], "what cache.visualization shows is shown, too"
