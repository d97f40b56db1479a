"""A tiny world, made once, and a scene made by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from nuscenes.nuscenes import NuScenes

from demo.world.actors import KINDS, Actor, Kind, Motion
from demo.world.config import WorldConfig
from demo.world.light import Light
from demo.world.make import VERSION, make_world, scene_names
from demo.world.road import Road
from demo.world.scene import Scene, build_scene
from demo.world.shapes import Material, Part

TINY = WorldConfig(
    seed=3,
    train_scenes=1,
    val_scenes=1,
    key_frames=3,
    past_sweeps=2,
    image_size=(144, 256),
    objects=24,
    lidar_azimuths=360,
)


@pytest.fixture(scope="session")
def tiny() -> WorldConfig:
    """Two scenes of three key frames."""
    return TINY


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's folder."""
    out = tmp_path_factory.mktemp("made") / "world"
    assert make_world(out, TINY, processes=1)
    return out


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """The tiny world's scenes."""
    return [build_scene(TINY, index, name) for index, name in enumerate(scene_names(TINY))]


@pytest.fixture(scope="session")
def tables(made: Path) -> NuScenes:
    """The tiny world as nuscenes-devkit sees it."""
    return NuScenes(VERSION, dataroot=str(made), verbose=False)


@pytest.fixture
def cube() -> Callable[..., Actor]:
    """An object that is one plain box, by default the size of a car."""

    def build(
        ahead_m: float,
        left_m: float = 0.0,
        size_m: tuple[float, float, float] = (4.0, 2.0, 1.5),
        rgb: tuple[int, int, int] = (200, 40, 40),
        s_mps: float = 0.0,
    ) -> Actor:
        part = Part((-0.5, 0.5), (-0.5, 0.5), (0.0, 1.0), Material(base=rgb, reflectivity=0.5))
        kind: Kind = KINDS[0]
        return Actor(kind=kind, solid_m=size_m, shape=(part,), motion=Motion(s_m=ahead_m, d_m=left_m, s_mps=s_mps))

    return build


@pytest.fixture
def stage(cube: Callable[..., Actor]) -> Callable[..., Scene]:
    """A scene on an almost straight road: the ego stands at the origin, looks along x, and sees these actors only."""

    def build(*actors: Actor, ego_mps: float = 0.0) -> Scene:
        light = Light(
            sun=(0.0, 0.0, 1.0),
            ambient=0.5,
            diffuse=0.5,
            tint=(1.0, 1.0, 1.0),
            horizon=(200, 200, 200),
            zenith=(100, 100, 200),
            yard=(100, 120, 80),
        )
        road = Road(radius_m=1e6, x_m=0.0, y_m=0.0, yaw_rad=0.0)
        seen = actors or (cube(-500.0),)
        return Scene(name="stage", index=0, road=road, ego_mps=ego_mps, actors=seen, light=light)

    return build
