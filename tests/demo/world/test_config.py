"""Worlds beyond nuScenes mini: names and splits of their own, harder images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from demo.world.config import WorldConfig
from demo.world.make import make_world, scene_names
from demo.world.scene import build_scene
from demo.world.shading import sample_light
from tests.factories.scenes import TINY

OWN = WorldConfig(
    names="own",
    train_scenes=3,
    val_scenes=1,
    key_frames=2,
    past_sweeps=0,
    image_size=(36, 64),
    objects=10,
    each_class=1,
    lidar_azimuths=40,
)


def test_own_scenes_are_split_beside_the_tables(tmp_path: Path) -> None:
    make_world(tmp_path / "world", OWN.model_copy(update={"parts": (("first", 0, 1), ("others", 1, 3))}), processes=1)
    split = json.loads((tmp_path / "world" / "v1.0-mini" / "splits.json").read_text())
    assert split == {
        "made_train": ["made_train-0000", "made_train-0001", "made_train-0002"],
        "made_val": ["made_val-0000"],
        "first": ["made_train-0000"],
        "others": ["made_train-0001", "made_train-0002"],
    }
    for name, frames in (("made_train", 6), ("made_val", 2), ("others", 4)):
        assert len(Frames(root=tmp_path / "world", version="v1.0-mini", splits=(name,))) == frames


def test_own_names_go_beyond_ten_scenes() -> None:
    names = scene_names(WorldConfig(names="own", train_scenes=150, val_scenes=100))
    assert len(set(names)) == 250
    assert names[149:151] == ("made_train-0149", "made_val-0000")


@pytest.mark.parametrize("changes", [{"train_scenes": 9}, {"val_scenes": 3}])
def test_mini_has_ten_scenes(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"nuScenes mini has fewer scenes .*at most 8 and 2. Set names to own"):
        WorldConfig(**changes)


@pytest.mark.parametrize("part", [(0, 4), (2, 2), (-1, 1)])
def test_parts_are_of_the_scenes_to_train_on(part: tuple[int, int]) -> None:
    said = rf"no such scenes for a split \(parts.some\); got {part[0]} .. {part[1]}.*0 <= first < last <= 3\."
    with pytest.raises(ConfigError, match=said):
        WorldConfig(names="own", train_scenes=3, parts=(("some", *part),))
    with pytest.raises(ConfigError, match="expected a name of its own, and 0 <= first < last <= 0"):
        WorldConfig(parts=(("some", 0, 1),))


@pytest.mark.parametrize("changes", [{"exposure": (1.0, 0.5)}, {"sun_elevation_deg": (0.0, 45.0)}])
def test_impossible_light_is_refused(changes: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match=f"there is no such light .{next(iter(changes))}"):
        WorldConfig(**changes)


def test_objects_of_a_class_differ_in_size_as_a_whole() -> None:
    def ratios(spread: float) -> np.ndarray:
        scene = build_scene(WorldConfig(size_spread=spread, key_frames=2), 0, "a")
        actors = [actor for actor in scene.actors if actor.kind.name]
        return np.asarray([np.divide(actor.solid_m, actor.kind.size_m) for actor in actors])

    plain, spread = ratios(0.0), ratios(0.4)
    assert 0.9 <= plain.min() <= plain.max() <= 1.1
    assert 0.9 * 0.6 <= spread.min() < 0.75
    assert 1.25 < spread.max() <= 1.1 * 1.4
    # Length, width and height go together.
    assert (spread.max(axis=1) / spread.min(axis=1)).max() <= 1.1 / 0.9


def test_sun_and_exposure_are_in_their_ranges() -> None:
    world = WorldConfig(sun_elevation_deg=(5.0, 10.0), exposure=(0.3, 0.4))
    for seed in range(8):
        light = sample_light(world, np.random.default_rng(seed))
        assert 5 <= np.degrees(np.arcsin(light.sun[2])) <= 10
        assert light.ambient <= 0.4 * 0.72


def test_noise_is_in_the_images_alone(made: Path, tmp_path: Path) -> None:
    noisy = TINY.model_copy(update={"image_noise": 8.0})
    make_world(tmp_path / "noisy", noisy, processes=1)
    image = sorted((made / "samples" / "CAM_BACK").iterdir())[0].relative_to(made)
    clean, other = (cv2.imread(str(root / image)).astype(float) for root in (made, tmp_path / "noisy"))
    assert 4 < (other - clean).std() < 8  # JPEG takes some of it
    for sweep in (made / "samples" / "LIDAR_TOP").iterdir():
        assert sweep.read_bytes() == (tmp_path / "noisy" / sweep.relative_to(made)).read_bytes()
