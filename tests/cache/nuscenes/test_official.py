"""nuScenes' constants are the devkit's."""

from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.color_map import get_colormap
from nuscenes.utils.splits import create_splits_scenes

from cache.nuscenes.official import ATTRIBUTES, CATEGORIES, CLASS_OF, split_scenes


def test_splits() -> None:
    assert {name: list(scenes) for name, scenes in split_scenes().items()} == create_splits_scenes()
    assert list(split_scenes()) == list(create_splits_scenes())


def test_categories_and_their_classes() -> None:
    assert list(get_colormap()) == list(CATEGORIES)
    assert {name: category_to_detection_name(name) for name in CATEGORIES} == {n: CLASS_OF.get(n) for n in CATEGORIES}


def test_attributes() -> None:
    assert list(ATTRIBUTES) == ATTRIBUTE_NAMES
