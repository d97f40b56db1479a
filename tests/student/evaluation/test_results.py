from pathlib import Path

import numpy as np
import pytest

from cache.errors import DataError
from student.evaluation.results import read_losses, read_results


def log(run: Path, name: str, text: str) -> None:
    (run / "csv").mkdir(parents=True, exist_ok=True)
    (run / "csv" / name).write_text(text)


def test_losses_of_a_resumed_training_are_joined(tmp_path: Path) -> None:
    log(tmp_path, "metrics-0.csv", "epoch,loss,loss/boxes,step\n0,9,4,0\n0,8,3,1\n")
    log(tmp_path, "metrics.csv", "epoch,loss,loss/boxes,loss/distill/fgd,step\n1,7,2,2,2\n1,,,,2\n1,6,1,1,3\n")
    found = read_losses(tmp_path)
    assert list(found) == ["boxes", "distill/fgd"]
    np.testing.assert_array_equal(found["boxes"].steps, [0, 1, 2, 3])
    np.testing.assert_array_equal(found["boxes"].values, [4, 3, 2, 1])
    np.testing.assert_array_equal(found["distill/fgd"].steps, [2, 3])


def test_a_run_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a training's log cannot be read .*metrics.csv.*Name a run's folder"):
        read_losses(tmp_path)


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"an evaluation's file cannot be read .*metrics_summary.json.*cli evaluate"):
        read_results(tmp_path)


def test_an_evaluation_is_read_back(evaluations, made_frames) -> None:
    found, metrics = evaluations["good"]
    assert (found.name, found.metrics.mean_ap, found.metrics.nds) == ("good", metrics.mean_ap, metrics.nds)
    assert found.metrics.class_ap == metrics.class_ap
    assert found.curves["car", 2.0].precision[50] == pytest.approx(1.0)
    assert {match.name for match in found.true_positives} >= {"car", "pedestrian"}
    frame = made_frames[0]
    boxes = found.boxes(frame)
    assert len(boxes) == len(frame.boxes)
    order, expected = np.lexsort(boxes[:, :2].T), np.lexsort(frame.boxes[:, :2].T)
    np.testing.assert_allclose(boxes[order][:, :7], frame.boxes[expected][:, :7] + [0.1, 0, 0, 0, 0, 0, 0], atol=1e-3)
    assert len(found.boxes(frame, count=3)) == 3
