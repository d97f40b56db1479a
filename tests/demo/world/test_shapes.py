"""Every object fills its box and belongs to a class of nuScenes."""

import numpy as np
import pytest
from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes

from cache.spec import CLASSES
from demo.world.actors import BUILDING, KINDS, TREE, Kind

ALL = [*KINDS, TREE, BUILDING]


def label(kind: Kind) -> str:
    return f"{kind.name or 'scenery'} {kind.size_m[2]} m"


@pytest.mark.parametrize("kind", ALL, ids=label)
def test_parts_reach_every_face_of_the_box_and_none_leaves_it(kind: Kind) -> None:
    parts = kind.build(np.random.default_rng(0))
    for axis, (low, high) in (("x", (-0.5, 0.5)), ("y", (-0.5, 0.5)), ("z", (0.0, 1.0))):
        spans = np.asarray([getattr(part, axis) for part in parts])
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (spans[:, 0].min(), spans[:, 1].max()) == pytest.approx((low, high))


def test_the_kinds_are_the_ten_classes() -> None:
    assert {kind.name for kind in KINDS} == set(CLASSES)


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_categories_and_attributes_are_those_of_the_class(kind: Kind) -> None:
    assert category_to_detection_name(kind.category) == kind.name
    used = {kind.attributes.stopped, kind.attributes.parked}
    used |= {kind.attributes.moving} if kind.moving else set()
    assert used <= set(detection_name_to_rel_attributes(kind.name) or [""])
