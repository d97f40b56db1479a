"""The configuration of a tiny made-up world, and scenes made by hand."""

from demo.world.actors import KINDS, Actor, Motion
from demo.world.config import WorldConfig
from demo.world.road import Road
from demo.world.scene import Scene
from demo.world.shading import Light
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
"""Two scenes of three key frames."""


def cube(
    ahead_m: float,
    left_m: float = 0.0,
    size_m: tuple[float, float, float] = (4.0, 2.0, 1.5),
    rgb: tuple[int, int, int] = (200, 40, 40),
    s_mps: float = 0.0,
) -> Actor:
    """An object that is one plain box, by default the size of a car."""
    part = Part((-0.5, 0.5), (-0.5, 0.5), (0.0, 1.0), Material(base=rgb, reflectivity=0.5))
    motion = Motion(s_m=ahead_m, d_m=left_m, s_mps=s_mps)
    return Actor(kind=KINDS[0], solid_m=size_m, shape=(part,), motion=motion)


def stage(*actors: Actor, ego_mps: float = 0.0) -> Scene:
    """A scene of these actors on an almost straight road; the ego stands at the origin and looks along x."""
    light = Light(
        sun=(0.0, 0.0, 1.0),
        ambient=0.5,
        diffuse=0.5,
        tint=(1.0, 1.0, 1.0),
        horizon=(200, 200, 200),
        zenith=(100, 100, 200),
        verge=(100, 120, 80),
    )
    road = Road(radius_m=1e6, x_m=0.0, y_m=0.0, yaw_rad=0.0)
    return Scene(name="stage", index=0, road=road, ego_mps=ego_mps, actors=actors or (cube(-500.0),), light=light)
