from pathlib import Path

from student.converters.convert import ImportReport, Row
from student.evaluation.metrics import Metrics
from student.visualization.tables import import_table, metrics_table


def test_the_table_has_every_number() -> None:
    metrics = Metrics(
        mean_ap=0.12345,
        nds=0.5,
        translation_error_m=0.5,
        scale_error=0.25,
        orientation_error_rad=1.5,
        velocity_error_mps=2.0,
        attribute_error=0.125,
        class_ap={"car": 0.75, "bus": 1 / 3},
    )
    assert dict(metrics_table(metrics).rows) == {
        "mAP": "0.1235",
        "NDS": "0.5000",
        "mATE (m)": "0.500",
        "mASE": "0.250",
        "mAOE (rad)": "1.500",
        "mAVE (m/s)": "2.000",
        "mAAE": "0.125",
        "AP car": "0.750",
        "AP bus": "0.333",
    }


def test_an_import_has_a_row_for_each_tensor() -> None:
    rows = (
        Row(status="used", public="img_neck.bias", ours="image_encoder.neck.bias", shape=(8,), note="converted"),
        Row(status="missing", public="", ours="head.scale", shape=()),
    )
    table = import_table(ImportReport(source=Path("public.pth"), format="BEVDet", boxes="no boxes", rows=rows))
    assert table.title == "public.pth"
    assert table.rows == (
        ("used", "img_neck.bias", "image_encoder.neck.bias", "8", "converted"),
        ("missing", "", "head.scale", "scalar", ""),
    )
