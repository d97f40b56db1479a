"""What can stand in a scene, and how it moves."""

from dataclasses import dataclass

from demo.world import shapes
from demo.world.road import LANES, Road, Values
from demo.world.shapes import Build, Shape

MARGIN_M = 0.02
"""Between a solid and each side of its annotated box, and above it: the LiDAR's noise stays within."""


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Names of nuScenes' attributes; empty where a class has none."""

    moving: str = ""
    stopped: str = ""
    parked: str = ""


_VEHICLE = Attributes(moving="vehicle.moving", stopped="vehicle.stopped", parked="vehicle.parked")
_PEDESTRIAN = Attributes(moving="pedestrian.moving", stopped="pedestrian.standing", parked="pedestrian.standing")
_RIDDEN = Attributes(moving="cycle.with_rider", stopped="cycle.with_rider", parked="cycle.with_rider")
_PARKED = Attributes(stopped="cycle.without_rider", parked="cycle.without_rider")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A sort of object.

    name: the detection class; scenery has none.
    size_m: mean length, width and height; instances differ by a few per cent.
    share: of the objects that are not there to make up `each_class`.
    range_m: nuScenes evaluates the class up to here.
    moving: probability.
    on_road: whether it keeps to lanes and kerbs when it is on the road.
    """

    name: str
    category: str
    size_m: tuple[float, float, float]
    build: Build
    share: float = 0.0
    range_m: float = 50.0
    moving: float = 0.0
    speed_mps: tuple[float, float] = (0.0, 0.0)
    attributes: Attributes = Attributes()
    on_road: bool = False


def _vehicle(
    name: str, category: str, size_m: tuple[float, float, float], build: Build, share: float, moving: float
) -> Kind:
    return Kind(
        name=name,
        category=f"vehicle.{category}",
        size_m=size_m,
        build=build,
        share=share,
        moving=moving,
        speed_mps=(2.0, 7.0),
        attributes=_VEHICLE,
        on_road=True,
    )


def _cycle(
    name: str, size_m: tuple[float, float, float], build: Build, *, share: float, speed_mps: tuple[float, float]
) -> Kind:
    ridden = speed_mps[1] > 0
    return Kind(
        name=name,
        category=f"vehicle.{name}",
        size_m=size_m,
        build=build,
        share=share,
        range_m=40.0,
        moving=1.0 if ridden else 0.0,
        speed_mps=speed_mps,
        attributes=_RIDDEN if ridden else _PARKED,
        on_road=ridden,
    )


KINDS = (
    _vehicle("car", "car", (4.6, 1.95, 1.7), shapes.car, share=0.45, moving=0.4),
    _vehicle("truck", "truck", (6.9, 2.5, 2.9), shapes.truck, share=0.05, moving=0.4),
    _vehicle("bus", "bus.rigid", (10.8, 2.9, 3.4), shapes.bus, share=0.01, moving=0.5),
    _vehicle("trailer", "trailer", (9.6, 2.7, 3.8), shapes.trailer, share=0.01, moving=0.2),
    _vehicle(
        "construction_vehicle", "construction", (6.2, 2.8, 3.1), shapes.construction_vehicle, share=0.01, moving=0.2
    ),
    _cycle("motorcycle", (2.1, 0.8, 1.55), shapes.motorcycle, share=0.01, speed_mps=(3.0, 7.0)),
    _cycle("motorcycle", (2.1, 0.8, 1.1), shapes.parked_motorcycle, share=0.01, speed_mps=(0.0, 0.0)),
    _cycle("bicycle", (1.75, 0.65, 1.7), shapes.bicycle, share=0.01, speed_mps=(1.5, 4.0)),
    _cycle("bicycle", (1.75, 0.65, 1.05), shapes.parked_bicycle, share=0.01, speed_mps=(0.0, 0.0)),
    Kind(
        name="pedestrian",
        category="human.pedestrian.adult",
        size_m=(0.7, 0.68, 1.77),
        build=shapes.pedestrian,
        share=0.23,
        range_m=40.0,
        moving=0.6,
        speed_mps=(0.6, 1.8),
        attributes=_PEDESTRIAN,
    ),
    Kind(
        name="barrier",
        category="movable_object.barrier",
        size_m=(0.55, 2.4, 1.0),
        build=shapes.barrier,
        share=0.12,
        range_m=30.0,
    ),
    Kind(
        name="traffic_cone",
        category="movable_object.trafficcone",
        size_m=(0.45, 0.45, 1.05),
        build=shapes.traffic_cone,
        share=0.08,
        range_m=30.0,
    ),
)
TREE = Kind(name="", category="", size_m=(2.6, 2.6, 5.5), build=shapes.tree)
BUILDING = Kind(name="", category="", size_m=(16.0, 10.0, 10.0), build=shapes.building)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Constant speed in road coordinates; `turn_rad` is the heading against the lane's direction."""

    s_m: float
    d_m: float
    s_mps: float = 0.0
    d_mps: float = 0.0
    turn_rad: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether it changes place."""
        return self.s_mps != 0 or self.d_mps != 0

    def at(self, road: Road, time_s: Values) -> tuple[Values, Values, Values]:
        """x, y and yaw in the map frame."""
        x, y, lane_rad = road.to_map(self.s_m + self.s_mps * time_s, self.d_m + self.d_mps * time_s)
        return x, y, lane_rad + self.turn_rad


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One object of a scene; `solid_m` is the length, width and height of its parts' hull."""

    kind: Kind
    solid_m: tuple[float, float, float]
    shape: Shape
    motion: Motion

    @property
    def attribute(self) -> str:
        """The name of its nuScenes attribute; a vehicle that stands in a lane is stopped, elsewhere it is parked."""
        attributes = self.kind.attributes
        if self.motion.moves:
            return attributes.moving
        in_lane = any(self.motion.d_m == offset_m for offset_m, _ in LANES)
        return attributes.stopped if in_lane else attributes.parked

    @property
    def box_m(self) -> tuple[float, float, float]:
        """Length, width and height of the annotated box, which stands on the ground."""
        length, width, height = self.solid_m
        return length + 2 * MARGIN_M, width + 2 * MARGIN_M, height + MARGIN_M
