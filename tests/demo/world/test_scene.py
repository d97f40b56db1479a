"""Scenes: what is in them, and that nothing touches."""

import numpy as np
import pytest
from nuscenes.utils.splits import mini_train, mini_val
from shapely.geometry import Polygon

from cache.errors import ConfigError
from cache.spec import CLASSES
from demo.world.config import WorldConfig
from demo.world.make import scene_names
from demo.world.placement import EGO_CENTRE_M, EGO_SIZE_M
from demo.world.scene import Scene, build_scene
from tests.factories.scenes import TINY


def footprint(x: float, y: float, yaw: float, length: float, width: float) -> Polygon:
    corners = np.asarray([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length / 2, width / 2)
    cos, sin = np.cos(yaw), np.sin(yaw)
    return Polygon(corners @ np.asarray([[cos, sin], [-sin, cos]]) + (x, y))


@pytest.mark.parametrize("time_s", [-0.1, 0.0, 0.37, 1.0])
def test_nothing_touches(scenes: list[Scene], time_s: float) -> None:
    for scene in scenes:
        x, y, yaw = scene.ego_pose(time_s)
        ego = footprint(x + EGO_CENTRE_M * np.cos(yaw), y + EGO_CENTRE_M * np.sin(yaw), yaw, *EGO_SIZE_M)
        poses = scene.poses(time_s)
        others = [footprint(*pose, *actor.box_m[:2]) for pose, actor in zip(poses, scene.actors, strict=True)]
        shapes = [ego, *others]
        touching = [(i, j) for i in range(len(shapes)) for j in range(i) if shapes[i].distance(shapes[j]) < 0.3]
        assert not touching


def test_every_class_is_there_as_often_as_asked(scenes: list[Scene]) -> None:
    for scene in scenes:
        names = [actor.kind.name for actor in scene.actors if actor.kind.name]
        assert len(names) == TINY.objects
        assert all(names.count(name) >= TINY.each_class for name in CLASSES)


def test_scenes_are_named_as_the_splits() -> None:
    assert scene_names(WorldConfig()) == (*mini_train, *mini_val)
    assert scene_names(WorldConfig(train_scenes=1, val_scenes=1)) == (mini_train[0], mini_val[0])


def test_light_and_road_differ_between_scenes(scenes: list[Scene]) -> None:
    assert scenes[0].light != scenes[1].light
    assert scenes[0].road != scenes[1].road


def test_the_same_seed_makes_the_same_scene(scenes: list[Scene]) -> None:
    assert build_scene(TINY, 1, scenes[1].name) == scenes[1]
    assert build_scene(TINY.model_copy(update={"seed": 4}), 1, scenes[1].name) != scenes[1]


def test_moving_objects_head_where_they_go(scenes: list[Scene]) -> None:
    for scene in scenes:
        before, after = scene.poses(0.49), scene.poses(0.51)
        moving = np.asarray([actor.motion.is_moving for actor in scene.actors])
        step = (after - before)[:, :2]
        assert np.abs(step[~moving]).max() == 0
        heading = np.stack([np.cos(before[:, 2]), np.sin(before[:, 2])], axis=1)
        along = (step * heading).sum(axis=1)[moving] / np.linalg.norm(step, axis=1)[moving]
        assert along.min() > 0.9


def test_too_many_objects_are_refused() -> None:
    crowded = WorldConfig(range_m=16, objects=400, key_frames=2)
    with pytest.raises(ConfigError, match=r"the objects don't fit into the range \(object \d+, \w+\); got 400 objects"):
        build_scene(crowded, 0, "scene")


def test_too_few_objects_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        WorldConfig(objects=15, each_class=2)
    assert str(caught.value) == (
        "a scene has too few objects for its classes (objects); got 15; expected at least 20, 2 of each class. "
        "Raise objects or lower each_class."
    )


def test_an_image_of_no_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="an image of that size cannot be drawn"):
        WorldConfig(image_size=(0, 800))


def test_a_misspelt_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'key_frame': did you mean 'key_frames'"):
        WorldConfig.parse({"key_frame": 3}, where="world.yaml")
