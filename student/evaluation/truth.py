"""What the official metrics need of a split's annotations, checked before the first frame runs."""

import numpy as np

from cache.errors import DataError
from cache.nuscenes.columns import SEVERAL_ATTRIBUTES
from cache.nuscenes.frames import Frames
from cache.nuscenes.official import ATTRIBUTES

TEST = "test"
"""The split whose annotations nuScenes keeps."""


def is_secret(frames: Frames) -> bool:
    """Whether these are frames of nuScenes' test split, without an annotation."""
    return frames.splits == (TEST,) and not len(frames.box_rows()[0])


def require_truth(frames: Frames) -> None:
    """Raise unless the devkit can evaluate the split.

    Raises:
        DataError: no box is of a detection class, or a box has several attributes or one that nuScenes lacks.
    """
    fault = truth_fault(frames)
    if fault is not None:
        raise fault


def truth_fault(frames: Frames) -> DataError | None:
    """Why the devkit cannot evaluate the split; None where it can."""
    columns, names = frames.tables.columns, frames.tables.names
    boxes, of_frame = frames.box_rows()
    evaluated = frames.box_labels(boxes)[0] >= 0
    if not evaluated.any():
        found = sorted({names.categories[i] for i in columns.box_category[boxes].tolist()})
        return DataError(
            "the split has no annotations to evaluate against",
            where=f"{frames.version}, {', '.join(frames.splits)}",
            got=f"{len(boxes):,} boxes of {', '.join(found[:5])}" if len(boxes) else "no box",
            expected="boxes of nuScenes' detection categories",
            cure="Evaluate on a split with annotations (those of test are on nuScenes' server alone)",
        )
    attributes = columns.box_attribute[boxes]
    unknown = [i for i, name in enumerate(names.attributes) if name not in ATTRIBUTES]
    wrong = {
        "a box has several attributes, and the official metrics take one": attributes == SEVERAL_ATTRIBUTES,
        "a box has an attribute that the official metrics do not have": np.isin(attributes, unknown),
    }
    for what, of_box in wrong.items():
        found_at = np.flatnonzero(of_box & evaluated)
        if len(found_at):
            first = found_at[0]
            category = names.categories[columns.box_category[boxes[first]]]
            attribute = "several" if attributes[first] == SEVERAL_ATTRIBUTES else names.attributes[attributes[first]]
            return DataError(
                what,
                where=f"sample_annotation.json, a {category} of token {frames.tokens[of_frame[first]]}",
                got=f"{attribute}, and {len(found_at) - 1:,} more such boxes",
                expected=f"none, or one of {', '.join(ATTRIBUTES)}",
                cure="Correct attribute_tokens, or leave them empty",
            )
    return None
