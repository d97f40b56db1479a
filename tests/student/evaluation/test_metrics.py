import math
from pathlib import Path

import pytest
import torch

from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import evaluate
from student.evaluation.metrics import Metrics, remarks_on
from student.models.decoding import Detections


@pytest.mark.parametrize(
    ("scale_error", "orientation_error_rad", "expected"),
    [
        (0.7, 1.57, True),
        (0.66, 1.49, True),
        (0.28, 1.57, False),  # a detector that does not know its headings
        (0.7, 0.5, False),
        (math.nan, math.nan, False),  # nothing was found
    ],
)
def test_the_signature_of_old_boxes(scale_error: float, orientation_error_rad: float, expected: bool) -> None:
    remarks = remarks_on(scale_error, orientation_error_rad)
    assert len(remarks) == expected
    assert all("mmdet3d < 1.0" in remark and "yaw = -yaw - pi/2" in remark for remark in remarks)


def evaluated(frames: Frames, out: Path, old: bool) -> Metrics:
    """Ground truth, in the convention of mmdet3d 1.x or of an earlier version."""
    found = []
    for frame in frames:
        boxes = torch.from_numpy(frame.boxes.copy())
        if old:
            boxes[:, 3:5] = boxes[:, [4, 3]]
            boxes[:, 6] = -boxes[:, 6] - math.pi / 2
        scores, labels = torch.full((len(boxes),), 0.9), torch.from_numpy(frame.labels)
        found.append((frame.token, Detections(boxes=boxes, scores=scores, labels=labels)))
    return evaluate(found, frames, out)


@pytest.mark.usefixtures("devkit")
def test_boxes_of_old_mmdet3d_are_recognised_by_their_errors(real_frames: Frames, tmp_path: Path) -> None:
    assert evaluated(real_frames, tmp_path / "now", old=False).remarks == ()
    (remark,) = evaluated(real_frames, tmp_path / "before", old=True).remarks
    assert "signature of boxes of mmdet3d < 1.0" in remark
