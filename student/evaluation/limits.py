"""What the official metrics cannot measure of some frames, found in the index before anything is trained."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from cache.nuscenes.counts import count_boxes
from cache.nuscenes.frames import CAMERAS, Frames
from cache.nuscenes.splits import is_official
from cache.spec import CLASSES
from student.evaluation.truth import truth_fault

STANDING = ("barrier", "traffic_cone")
"""The classes that the official metrics compare neither attributes nor velocities of."""


def metric_limits(frames: Frames, classes: Collection[str]) -> tuple[str, ...]:
    """What DetectionEval will not measure, or refuse, of these frames; empty where nothing is amiss.

    Classes without boxes are usual in nuScenes' own small splits, and are named only of others.

    Args:
        classes: that the detector predicts.
    """
    fault = truth_fault(frames)
    refused = () if fault is None else (f"`evaluate` will refuse it: {fault}",)
    if not (frames.box_labels(frames.box_rows()[0])[0] >= 0).any():
        return refused
    return (*refused, *_limits(frames, classes))


def _limits(frames: Frames, classes: Collection[str]) -> Iterator[str]:
    columns, counts = frames.tables.columns, count_boxes(frames)
    absent = [name for name, count in counts.by_class.items() if not count]
    if absent and not is_official(frames.version, frames.splits):
        yield (
            f"mAP and NDS are means over ten classes, and it has no box of {_listed(absent)}: they count with an AP of "
            f"0 and errors of 1, mAP is at most {1 - len(absent) / len(CLASSES):.1f}"
        )
    if missed := [name for name, count in counts.by_class.items() if count and name not in classes]:
        yield f"the detector does not predict {_listed(missed)}: they count with an AP of 0 and errors of 1"
    boxes, _ = frames.box_rows()
    labels, used = frames.box_labels(boxes)
    boxes, labels = boxes[used], labels[used]
    if bare := _classes_without(columns.box_attribute[boxes] >= 0, labels):
        yield f"no box of {_listed(bare)} has an attribute: their attribute error (mAAE) counts as 1"
    if resting := _classes_without(~np.isnan(columns.box_velocity[boxes]).any(axis=1), labels):
        yield (
            f"no box of {_listed(resting)} has a velocity (prev and next of sample_annotation give it): their velocity "
            "error (mAVE) counts as 1"
        )
    if counts.unknown:
        number, categories = sum(counts.unknown.values()), _listed(list(counts.unknown))
        yield f"{number:,} boxes are of no detection class ({categories}) and not evaluated"
    if len(frames.cameras) < len(CAMERAS):
        yield f"boxes that none of {_listed(frames.cameras)} sees are evaluated too, and count as missed"


def _classes_without(has_value: Bool[np.ndarray, "B"], labels: Int[np.ndarray, "B"]) -> list[str]:
    """The moving classes that have boxes, none of which has a value."""
    boxes = np.bincount(labels, minlength=len(CLASSES))
    values = np.bincount(labels[has_value], minlength=len(CLASSES))
    found = zip(CLASSES, boxes.tolist(), values.tolist(), strict=True)
    return [name for name, count, valued in found if count and not valued and name not in STANDING]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
