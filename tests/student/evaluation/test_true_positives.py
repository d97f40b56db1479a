from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate
from nuscenes.eval.detection.data_classes import DetectionBox

from cache.errors import DataError
from student.evaluation.matching import true_positives
from student.evaluation.true_positives import TruePositive, read_true_positives, write_true_positives


def box(token: str, x: float, y: float, name: str = "car", score: float = -1.0, yaw_rad: float = 0.0) -> DetectionBox:
    return DetectionBox(
        sample_token=token, translation=(x, y, 0.0), size=(2.0, 4.0, 1.5), detection_name=name,
        rotation=(float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2))), velocity=(1.0, 0.0),
        detection_score=score, attribute_name="",
    )  # fmt: skip


def boxes(*some: DetectionBox) -> EvalBoxes:
    made = EvalBoxes()
    for token in ("s", "t"):
        made.add_boxes(token, [each for each in some if each.sample_token == token])
    return made


def test_the_surest_takes_the_nearest_that_is_free() -> None:
    truth = boxes(box("s", 0, 0), box("s", 3, 0), box("t", 0, 0))
    found = boxes(box("s", 1.0, 0, score=0.9), box("s", 0.5, 0, score=0.8), box("s", 9, 9, score=0.7))
    first, second = sorted(true_positives(truth, found, 4.0), key=lambda match: -match.score)
    assert (first.score, first.translation_m) == (0.9, 1.0)
    assert (second.score, second.translation_m) == (0.8, 2.5), "the nearest was taken"
    assert len(list(true_positives(truth, found, 2.0))) == 1


def test_classes_do_not_mix() -> None:
    truth = boxes(box("s", 0, 0, "car"))
    assert not list(true_positives(truth, boxes(box("s", 0, 0, "bus", 0.9)), 2.0))


def test_errors_by_hand() -> None:
    truth = boxes(box("s", 0, 0), box("s", 0, 0, "barrier"), box("s", 0, 0, "traffic_cone"))
    turned = [box("s", 0, 0.3, name, 0.9, yaw_rad=np.pi) for name in ("car", "barrier", "traffic_cone")]
    found = {match.name: match for match in true_positives(truth, boxes(*turned), 2.0)}
    assert found["car"].orientation_rad == pytest.approx(np.pi)
    assert found["barrier"].orientation_rad == pytest.approx(0, abs=1e-6)
    assert np.isnan(found["traffic_cone"].orientation_rad)
    assert found["car"].velocity_mps == 0
    assert np.isnan(found["barrier"].velocity_mps)
    assert found["car"].scale == pytest.approx(0)
    assert found["car"].translation_m == pytest.approx(0.3)


def test_the_same_as_the_devkits_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    truth = boxes(*(box(token, *random.uniform(-8, 8, 2)) for token in "st" for _ in range(30)))
    scores = (random.integers(1, 12, 120) / 12).tolist()  # many are equal
    found = boxes(*(box("st"[i % 2], *random.uniform(-8, 8, 2), score=s) for i, s in enumerate(scores)))
    theirs = []
    monkeypatch.setattr(
        "nuscenes.eval.detection.algo.velocity_l2",  # the devkit calls it once for each match
        lambda there, here: theirs.append((here.detection_score, center_distance(there, here))) or 0.0,
    )
    accumulate(truth, found, "car", center_distance, 2.0)
    ours = [(match.score, match.translation_m) for match in true_positives(truth, found, 2.0)]
    assert len(ours) > 30
    assert sorted(ours) == sorted(theirs)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    match = TruePositive(name="car", score=0.5, translation_m=1.25, scale=0.1, orientation_rad=0.2, velocity_mps=np.nan)
    write_true_positives([match], tmp_path / "matches.csv")
    (read,) = read_true_positives(tmp_path / "matches.csv")
    np.testing.assert_equal(asdict(read), asdict(match))


def test_an_evaluation_of_another_time_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"true positives cannot be read .*matches.csv.; got No such file.*Run `cli eval"
    ):
        read_true_positives(tmp_path / "matches.csv")
    (tmp_path / "matches.csv").write_text("name,score\ncar,much\n")
    with pytest.raises(DataError, match="got could not convert string to float: 'much'"):
        read_true_positives(tmp_path / "matches.csv")
