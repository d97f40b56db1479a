import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import DataError
from cache.frames import Frames
from cache.spec import CLASSES
from student.evaluate import attribute, evaluate
from student.head import Detections


def truth(frames: Frames, token: str) -> Detections:
    """Ground truth as detections."""
    frame = frames[token]
    return Detections(
        boxes=torch.from_numpy(frame.boxes),
        scores=torch.linspace(0.9, 0.8, len(frame.boxes)),
        labels=torch.from_numpy(frame.labels),
    )


def test_ground_truth_as_detections_is_perfect(real_frames: Frames, tmp_path: Path) -> None:
    (token,) = real_frames.tokens
    metrics = evaluate([(token, truth(real_frames, token))], real_frames, tmp_path)
    pedestrians = json.loads((tmp_path / "metrics_summary.json").read_text())["label_tp_errors"]["pedestrian"]
    assert metrics.class_ap["pedestrian"] == pytest.approx(1.0)
    assert metrics.class_ap["car"] == pytest.approx(1.0)
    assert pedestrians["trans_err"] == pytest.approx(0, abs=1e-3)
    assert pedestrians["scale_err"] == pytest.approx(0, abs=1e-3)
    assert pedestrians["orient_err"] == pytest.approx(0, abs=1e-2)


def test_a_metre_off_is_a_metre_of_translation_error(real_frames: Frames, tmp_path: Path) -> None:
    (token,) = real_frames.tokens
    found = truth(real_frames, token)
    found.boxes[:, 0] += 0.6
    evaluate([(token, found)], real_frames, tmp_path)
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["label_tp_errors"]["car"]["trans_err"] == pytest.approx(0.6, abs=0.01)


def test_the_submission_names_the_sensor(real_frames: Frames, tmp_path: Path) -> None:
    (token,) = real_frames.tokens
    evaluate([(token, truth(real_frames, token))], real_frames, tmp_path, sensor="lidar")
    meta = json.loads((tmp_path / "results_nusc.json").read_text())["meta"]
    assert (meta["use_lidar"], meta["use_camera"]) == (True, False)


def test_a_frame_without_detections_is_named(real_frames: Frames, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"frames without detections .*{real_frames.tokens[0]}"):
        evaluate([], real_frames, tmp_path)


def test_a_detection_that_is_not_finite_is_refused(real_frames: Frames, tmp_path: Path) -> None:
    (token,) = real_frames.tokens
    found = truth(real_frames, token)
    found.boxes[3, 2] = np.nan
    with pytest.raises(DataError, match=f"a detection is not finite .token {token}"):
        evaluate([(token, found)], real_frames, tmp_path)


@pytest.mark.parametrize(
    ("name", "speed_mps", "expected"),
    [
        ("car", 3.0, "vehicle.moving"),
        ("car", 0.1, "vehicle.parked"),
        ("bus", 0.1, "vehicle.stopped"),
        ("bicycle", 3.0, "cycle.with_rider"),
        ("motorcycle", 0.0, "cycle.without_rider"),
        ("pedestrian", 1.0, "pedestrian.moving"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("barrier", 0.0, ""),
    ],
)
def test_attributes(name: str, speed_mps: float, expected: str) -> None:
    assert name in CLASSES
    assert attribute(name, speed_mps) == expected
