import json
from pathlib import Path

import numpy as np
import pytest

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import evaluate
from tests.factories.detections import truths

pytestmark = pytest.mark.usefixtures("devkit")


def test_ground_truth_as_detections_is_perfect(made_frames: Frames, tmp_path: Path) -> None:
    metrics = evaluate(truths(made_frames), made_frames, tmp_path)
    pedestrians = json.loads((tmp_path / "metrics_summary.json").read_text())["label_tp_errors"]["pedestrian"]
    assert metrics.class_ap["pedestrian"] == pytest.approx(1.0)
    assert metrics.class_ap["car"] == pytest.approx(1.0)
    assert pedestrians["trans_err"] == pytest.approx(0, abs=1e-3)
    assert pedestrians["scale_err"] == pytest.approx(0, abs=1e-3)
    assert pedestrians["orient_err"] == pytest.approx(0, abs=1e-2)


def test_a_metre_off_is_a_metre_of_translation_error(made_frames: Frames, tmp_path: Path) -> None:
    found = truths(made_frames)
    for _, detections in found:
        detections.boxes[:, 0] += 0.6
    evaluate(found, made_frames, tmp_path)
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["label_tp_errors"]["car"]["trans_err"] == pytest.approx(0.6, abs=0.01)


def test_the_submission_names_the_sensor(made_frames: Frames, tmp_path: Path) -> None:
    evaluate(truths(made_frames), made_frames, tmp_path, sensor="lidar")
    meta = json.loads((tmp_path / "results_nusc.json").read_text())["meta"]
    assert (meta["use_lidar"], meta["use_camera"]) == (True, False)


def test_a_frame_without_detections_is_named(made_frames: Frames, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"frames have no detections .*{made_frames.tokens[0]}"):
        evaluate([], made_frames, tmp_path)


def test_a_detection_that_is_not_finite_is_refused(made_frames: Frames, tmp_path: Path) -> None:
    found = truths(made_frames)
    found[1][1].boxes[3, 2] = np.nan
    with pytest.raises(DataError, match=f"a detection is not finite .token {made_frames.tokens[1]}"):
        evaluate(found, made_frames, tmp_path)


def test_the_real_frames_own_boxes_are_found(real_frames: Frames, tmp_path: Path) -> None:
    metrics = evaluate(truths(real_frames), real_frames, tmp_path)
    assert metrics.class_ap["car"] == pytest.approx(1.0)
    assert metrics.class_ap["pedestrian"] == pytest.approx(1.0)
