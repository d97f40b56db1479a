"""A scene: a road, an ego vehicle that follows it, objects around it, and light."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from cache.spec import CLASSES
from demo.world.actors import BUILDING, KINDS, TREE, Actor, Kind
from demo.world.config import WorldConfig
from demo.world.placement import Placement
from demo.world.road import Pose2d, Road
from demo.world.shading import Light, sample_light
from demo.world.shapes import Material

START_M = (200.0, 300.0)
"""Range of the scenes' start positions in their maps, in x and in y."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The geometry, motion and light of a scene; times are seconds after its first key frame."""

    name: str
    index: int
    road: Road
    ego_mps: float
    actors: tuple[Actor, ...]
    light: Light

    @cached_property
    def materials(self) -> tuple[Material, ...]:
        """Of all parts of all actors, in the order of `ray_casting.Solids`."""
        return tuple(part.material for actor in self.actors for part in actor.shape)

    def ego_pose(self, time_s: float) -> Pose2d:
        """x, y and yaw of the ego vehicle's rear axle in the map frame, whose ground is flat at z = 0."""
        return self.road.pose(self.ego_mps * time_s)

    def poses(self, time_s: float) -> Float[np.ndarray, "A 3"]:
        """x, y and yaw of every actor in the map frame."""
        return np.asarray([actor.motion.at(self.road, np.asarray([time_s])) for actor in self.actors]).reshape(-1, 3)

    def poses_in_ego(self, time_s: float) -> Float[np.ndarray, "A 3"]:
        """x, y and yaw of every actor in the ego frame of that time."""
        ego_x, ego_y, ego_yaw = self.ego_pose(time_s)
        x, y, yaw = (self.poses(time_s) - (ego_x, ego_y, ego_yaw)).T
        cos, sin = np.cos(ego_yaw), np.sin(ego_yaw)
        return np.stack([cos * x + sin * y, cos * y - sin * x, yaw], axis=1)


def build_scene(world: WorldConfig, index: int, name: str) -> Scene:
    """The scene of an index; its content does not depend on the name.

    Raises:
        ConfigError: the objects don't fit into the range.
    """
    rng = np.random.default_rng([world.seed, index])
    road = Road(
        radius_m=float(rng.choice((-1, 1)) * rng.uniform(4, 12) * world.range_m),
        x_m=float(rng.uniform(*START_M)),
        y_m=float(rng.uniform(*START_M)),
        yaw_rad=float(rng.uniform(-np.pi, np.pi)),
    )
    ego_mps = float(rng.uniform(1.5, 5.0))
    placement = Placement(world=world, road=road, ego_mps=ego_mps, rng=rng)
    for kind in _sample_kinds(world, rng):
        placement.add(kind)
    for _ in range(8):
        placement.add_scenery(BUILDING, (1.5 * world.range_m + 20, 2 * world.range_m + 20))
        placement.add_scenery(TREE, (0.0, 1.5 * world.range_m))
    actors, light = tuple(placement.actors), sample_light(world, rng)
    return Scene(name=name, index=index, road=road, ego_mps=ego_mps, actors=actors, light=light)


def _sample_kinds(world: WorldConfig, rng: np.random.Generator) -> list[Kind]:
    """`each_class` objects of every class and the rest by their shares, the largest first: they need most space."""
    kinds = []
    for name in CLASSES:
        of_class = [kind for kind in KINDS if kind.name == name]
        kinds += [of_class[i % len(of_class)] for i in range(world.each_class)]
    shares = np.asarray([kind.share for kind in KINDS])
    drawn = rng.choice(len(KINDS), size=world.objects - len(kinds), p=shares / shares.sum())
    return sorted(kinds + [KINDS[i] for i in drawn], key=lambda kind: -max(kind.size_m))
