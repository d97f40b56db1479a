"""Random placement of a scene's objects, free of collisions over the whole scene."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from cache.errors import ConfigError
from demo.world.actors import Actor, Kind, Motion
from demo.world.config import KEY_PERIOD_S, SWEEP_PERIOD_S, WorldConfig
from demo.world.road import EDGES_M, KERBS, LANES, OPEN_LANES, PAVEMENT_M, Lane, Road

CLEARANCE_M = 0.4
EGO_SIZE_M = (4.6, 2.0)
EGO_CENTRE_M = 1.3
"""From the origin of the ego frame, the rear axle, forward to the vehicle's centre."""
_LONG_M = 6.0
_TRIES, _SCENERY_TRIES = 400, 10
_STEP_S = 0.125

Outline = Float[np.ndarray, "T 4 2"]


@dataclass(kw_only=True)
class Placement:
    """A scene under construction; each object keeps CLEARANCE_M to all others at all times."""

    world: WorldConfig
    road: Road
    ego_mps: float
    rng: np.random.Generator
    actors: list[Actor] = field(default_factory=list)

    def __post_init__(self) -> None:
        last_s = (self.world.key_frames - 1) * KEY_PERIOD_S
        first_s = -self.world.past_sweeps * SWEEP_PERIOD_S
        self._times_s = np.append(np.arange(first_s, last_s, _STEP_S), last_s)
        ego = Motion(s_m=EGO_CENTRE_M, d_m=0.0, s_mps=self.ego_mps)
        self._outlines = [self._outline(ego, *EGO_SIZE_M)]

    def add(self, kind: Kind) -> None:
        """Place an object of the ten classes that is in range at one key frame at least.

        Raises:
            ConfigError: there is no free place.
        """
        if not self._place(kind, self._object_motion, _TRIES):
            raise ConfigError(
                "the objects don't fit into the range",
                where=f"object {len(self.actors) + 1}, {kind.name}",
                got=f"{self.world.objects} objects within +-{self.world.range_m} m",
                expected=f"a free place in {_TRIES} tries",
                cure="Lower objects or each_class, or raise range_m",
            )

    def add_scenery(self, kind: Kind, distance_m: tuple[float, float]) -> None:
        """Place an unannotated object off the road, at a distance from the ego vehicle; omit it if nothing is free."""
        self._place(kind, lambda kind: self._scenery_motion(kind, distance_m), _SCENERY_TRIES)

    def _place(self, kind: Kind, sample_motion: Callable[[Kind], Motion | None], tries: int) -> bool:
        scale = self._sample_scale()
        length, width, height = (
            scale * mean * float(np.clip(self.rng.normal(1, 0.04), 0.9, 1.1)) for mean in kind.size_m
        )
        for _ in range(tries):
            motion = sample_motion(kind)
            if motion is None:
                continue
            outline = self._outline(motion, length, width)
            if not any(_overlap(outline, other) for other in self._outlines):
                solid_m, shape = (length, width, height), kind.build(self.rng)
                self.actors.append(Actor(kind=kind, solid_m=solid_m, shape=shape, motion=motion))
                self._outlines.append(outline)
                return True
        return False

    def _sample_scale(self) -> float:
        """The size of an object as a whole, in means of its class; nothing is drawn where there is no spread."""
        spread = self.world.size_spread
        return float(self.rng.uniform(1 - spread, 1 + spread)) if spread else 1.0

    def _object_motion(self, kind: Kind) -> Motion:
        """Sample a key frame and a position in range at that time, and a motion that suits the kind."""
        time_s = KEY_PERIOD_S * float(self.rng.integers(self.world.key_frames))
        s_m, d_m = self._position(time_s, kind)
        moving = self.rng.random() < kind.moving
        turn_rad = float(self.rng.uniform(-np.pi, np.pi))
        if kind.on_road and (moving or EDGES_M[0] < d_m < EDGES_M[1]):
            d_m, turn_rad = _nearest_lane(d_m, _lanes(kind, moving))
        speed_mps = float(self.rng.uniform(*kind.speed_mps)) if moving else 0.0
        s_mps, d_mps = speed_mps * float(np.cos(turn_rad)), speed_mps * float(np.sin(turn_rad))
        return Motion(s_m=s_m - s_mps * time_s, d_m=d_m - d_mps * time_s, s_mps=s_mps, d_mps=d_mps, turn_rad=turn_rad)

    def _position(self, time_s: float, kind: Kind) -> tuple[float, float]:
        """Sample road coordinates uniformly in the square range, within the evaluated range of the class.

        Long vehicles stay in its outer half: near the ego vehicle they would hide everything else.
        """
        nearest_m = self.world.range_m / 2 if _is_long(kind) else 0.0
        while True:
            ahead, left = self.rng.uniform(-self.world.range_m, self.world.range_m, 2)
            if nearest_m <= np.hypot(ahead, left) < kind.range_m:
                return self._from_ego(time_s, ahead, left)

    def _scenery_motion(self, kind: Kind, distance_m: tuple[float, float]) -> Motion | None:
        angle, distance = self.rng.uniform(-np.pi, np.pi), self.rng.uniform(*distance_m)
        s_m, d_m = self._from_ego(self._times_s[-1] / 2, distance * np.cos(angle), distance * np.sin(angle))
        off_road_m = max(EDGES_M[0] - d_m, d_m - EDGES_M[1])
        if off_road_m <= PAVEMENT_M + np.hypot(*kind.size_m[:2]) / 2:
            return None
        return Motion(s_m=s_m, d_m=d_m, turn_rad=float(self.rng.uniform(-np.pi, np.pi)))

    def _from_ego(self, time_s: float, ahead_m: float, left_m: float) -> tuple[float, float]:
        ego = self.road.pose(self.ego_mps * time_s)
        s_m, d_m = self.road.from_vehicle(ego, np.asarray([ahead_m]), np.asarray([left_m]))
        return float(s_m[0]), float(d_m[0])

    def _outline(self, motion: Motion, length_m: float, width_m: float) -> Outline:
        """The corners of an object's footprint over time, widened by half the clearance."""
        x, y, yaw = (values[:, None] for values in motion.at(self.road, self._times_s))
        half = (np.asarray([length_m, width_m]) + CLEARANCE_M) / 2
        along, across = (np.asarray([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half).T
        cos, sin = np.cos(yaw), np.sin(yaw)
        return np.stack([x + cos * along - sin * across, y + sin * along + cos * across], axis=-1)


def _is_long(kind: Kind) -> bool:
    return kind.size_m[0] > _LONG_M


def _lanes(kind: Kind, moving: bool) -> tuple[Lane, ...]:
    if not moving:
        return OPEN_LANES + KERBS
    return OPEN_LANES if _is_long(kind) else LANES


def _nearest_lane(d_m: float, lanes: tuple[Lane, ...]) -> tuple[float, float]:
    """The offset of the nearest lane and its heading."""
    offset_m, direction = min(lanes, key=lambda lane: abs(lane[0] - d_m))
    return offset_m, 0.0 if direction > 0 else np.pi


def _overlap(one: Outline, other: Outline) -> bool:
    """Whether two rectangles overlap at any time: no side of either separates them (separating axis theorem)."""
    apart = np.zeros(len(one), dtype=bool)
    for rectangle in (one, other):
        for start, end in ((0, 1), (1, 2)):
            axis = (rectangle[:, end] - rectangle[:, start])[:, :, None]
            a, b = (one @ axis)[..., 0], (other @ axis)[..., 0]
            apart |= (a.max(axis=1) < b.min(axis=1)) | (b.max(axis=1) < a.min(axis=1))
    return not bool(apart.all())
