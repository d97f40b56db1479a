"""Match detections to the ground truth as the devkit does, and measure each match with its functions."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance, scale_iou, velocity_l2, yaw_diff
from nuscenes.eval.detection.data_classes import DetectionBox
from scipy.spatial.distance import cdist

from student.evaluation.true_positives import TruePositive


def true_positives(truth: EvalBoxes, found: EvalBoxes, within_m: float) -> Iterator[TruePositive]:
    """Match detections to the ground truth as the devkit does: by descending score, to the nearest unmatched box."""
    for token in truth.sample_tokens:
        theirs, ours = _by_class(truth[token]), _by_class(found[token])
        for name in theirs.keys() & ours.keys():
            for there, here in _matched(theirs[name], ours[name], within_m):
                yield _measured(there, here)


def _by_class(boxes: Sequence[DetectionBox]) -> dict[str, list[DetectionBox]]:
    by_class = defaultdict(list)
    for box in boxes:
        by_class[box.detection_name].append(box)
    return by_class


def _matched(
    truth: list[DetectionBox], found: list[DetectionBox], within_m: float
) -> Iterator[tuple[DetectionBox, DetectionBox]]:
    # Of equal scores the devkit takes the later one first.
    surest = sorted(enumerate(found), key=lambda each: (each[1].detection_score, each[0]), reverse=True)
    distances_m = cdist([box.translation[:2] for _, box in surest], [box.translation[:2] for box in truth])
    for row in np.flatnonzero(distances_m.min(axis=1) < within_m):
        nearest = int(distances_m[row].argmin())
        if distances_m[row, nearest] < within_m:
            distances_m[:, nearest] = np.inf
            yield truth[nearest], surest[row][1]


def _measured(there: DetectionBox, here: DetectionBox) -> TruePositive:
    name = there.detection_name
    # A barrier looks the same from both sides.
    period = np.pi if name == "barrier" else 2 * np.pi
    moves = name not in ("barrier", "traffic_cone")
    return TruePositive(
        name=name,
        score=float(here.detection_score),
        translation_m=float(center_distance(there, here)),
        scale=float(1 - scale_iou(there, here)),
        orientation_rad=np.nan if name == "traffic_cone" else float(yaw_diff(there, here, period=period)),
        velocity_mps=float(velocity_l2(there, here)) if moves else np.nan,
    )
