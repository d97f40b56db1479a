"""What the official metrics cannot measure, told apart by hand-made tables and checked against the devkit."""

import json
from pathlib import Path

import pytest

from cache.nuscenes.frames import Frames
from cache.spec import CLASSES
from student.evaluation.evaluate import evaluate
from student.evaluation.limits import metric_limits
from tests.factories.detections import truths
from tests.factories.tables import Tables, make_tables, write_tables


@pytest.fixture
def tables() -> Tables:
    """The car has one box in each key frame; a cone has one; boxes have no attribute."""
    return make_tables()


def frames_of(root: Path, tables: Tables, version: str = "mine", split: str = "all", **options: object) -> Frames:
    return Frames(root=write_tables(root, tables, version), version=version, splits=(split,), **options)


def limits(frames: Frames) -> str:
    return "\n".join(metric_limits(frames, CLASSES))


def test_nuscenes_own_layout_has_no_limits(made_root: Path) -> None:
    for split in ("mini_train", "mini_val"):
        assert not limits(Frames(root=made_root, version="v1.0-mini", splits=(split,)))


def test_a_split_without_boxes(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"] = []
    assert "`evaluate` will refuse it: the split has no annotations to evaluate against" in limits(
        frames_of(tmp_path, tables)
    )


@pytest.mark.usefixtures("devkit")
def test_classes_without_boxes_or_attributes_count_as_the_devkit_counts_them(tmp_path: Path, tables: Tables) -> None:
    frames = frames_of(tmp_path, tables)
    found = limits(frames)
    assert "no box of truck, construction_vehicle, bus, trailer, barrier, motorcycle, bicycle, pedestrian" in found
    assert "mAP is at most 0.2" in found
    assert "no box of car has an attribute: their attribute error (mAAE) counts as 1" in found
    metrics = evaluate(truths(frames), frames, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "metrics_summary.json").read_text())
    assert metrics.mean_ap == pytest.approx(0.2, abs=1e-3)
    assert summary["label_tp_errors"]["car"]["attr_err"] == 1
    assert summary["label_tp_errors"]["car"]["vel_err"] == pytest.approx(0, abs=1e-3)
    assert summary["label_tp_errors"]["bus"]["trans_err"] == 1


@pytest.mark.usefixtures("devkit")
def test_boxes_without_velocity(tmp_path: Path, tables: Tables) -> None:
    assert "has a velocity" not in limits(frames_of(tmp_path, tables))
    for box in tables["sample_annotation"]:
        box |= {"prev": "", "next": ""}
    frames = frames_of(tmp_path, tables)
    assert "no box of car has a velocity (prev and next of sample_annotation give it)" in limits(frames)
    evaluate(truths(frames), frames, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "metrics_summary.json").read_text())
    assert summary["label_tp_errors"]["car"]["vel_err"] == 1


def test_several_attributes(tmp_path: Path, tables: Tables) -> None:
    tables["attribute"] = [{"token": name, "name": name} for name in ("vehicle.moving", "vehicle.parked")]
    for box in tables["sample_annotation"]:
        box["attribute_tokens"] = ["vehicle.moving"]
    assert "attribute" not in limits(frames_of(tmp_path, tables))
    tables["sample_annotation"][0]["attribute_tokens"] = ["vehicle.moving", "vehicle.parked"]
    found = limits(frames_of(tmp_path, tables))
    assert "`evaluate` will refuse it: a box has several attributes, and the official metrics take one" in found
    assert "several, and 0 more such boxes" in found


def test_categories_of_ones_own(tmp_path: Path, tables: Tables) -> None:
    next(row for row in tables["category"] if row["name"] == "animal")["name"] = "robot"
    assert "boxes are of no detection class (robot) and not evaluated" in limits(frames_of(tmp_path, tables))


def test_fewer_cameras(tmp_path: Path, tables: Tables) -> None:
    frames = frames_of(tmp_path, tables, cameras=("CAM_FRONT", "CAM_BACK"))
    assert "boxes that none of CAM_FRONT, CAM_BACK sees are evaluated too" in limits(frames)
    assert "sees" not in limits(frames_of(tmp_path, tables))


def test_classes_that_the_detector_does_not_predict(made_frames: Frames) -> None:
    without = [name for name in CLASSES if name != "car"]
    assert metric_limits(made_frames, without) == (
        "the detector does not predict car: they count with an AP of 0 and errors of 1",
    )
