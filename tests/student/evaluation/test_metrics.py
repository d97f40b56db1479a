import math
from pathlib import Path

import pytest
import torch

from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import evaluate
from student.evaluation.metrics import Metrics, remarks_on
from student.models.decoding import Detections


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
    assert dict(metrics.table().rows) == {
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


@pytest.mark.parametrize(
    ("scale_error", "orientation_error_rad", "said"),
    [
        (0.7, 1.57, True),
        (0.66, 1.49, True),
        (0.28, 1.57, False),  # a detector that does not know its headings
        (0.7, 0.5, False),
        (math.nan, math.nan, False),  # nothing was found
    ],
)
def test_the_signature_of_old_boxes(scale_error: float, orientation_error_rad: float, said: bool) -> None:
    remarks = remarks_on(scale_error, orientation_error_rad)
    assert len(remarks) == said
    assert all("mmdet3d < 1.0" in remark and "yaw = -yaw - pi/2" in remark for remark in remarks)


def evaluated(frames: Frames, out: Path, old: bool) -> Metrics:
    """Ground truth, as mmdet3d 1.x or as an earlier one would say it."""
    found = []
    for frame in frames:
        boxes = torch.from_numpy(frame.boxes.copy())
        if old:
            boxes[:, 3:5] = boxes[:, [4, 3]]
            boxes[:, 6] = -boxes[:, 6] - math.pi / 2
        scores, labels = torch.full((len(boxes),), 0.9), torch.from_numpy(frame.labels)
        found.append((frame.token, Detections(boxes=boxes, scores=scores, labels=labels)))
    return evaluate(found, frames, out)


def test_boxes_of_old_mmdet3d_are_recognised_by_their_errors(real_frames: Frames, tmp_path: Path) -> None:
    assert evaluated(real_frames, tmp_path / "now", old=False).remarks == ()
    (remark,) = evaluated(real_frames, tmp_path / "before", old=True).remarks
    assert "signature of boxes of mmdet3d < 1.0" in remark
