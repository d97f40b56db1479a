"""The kinds of objects in a scene, with their nuScenes categories and attributes, and how they move."""

from dataclasses import dataclass
from functools import partial

from demo.world import shapes
from demo.world.road import LANES, Road, Values
from demo.world.shapes import Build, Shape

MARGIN_M = 0.02
"""Between a solid and each side of its annotated box, and above it: keeps the LiDAR's noise within the box."""


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Names of nuScenes attributes by state of motion; empty where a class has none."""

    moving: str = ""
    stopped: str = ""
    parked: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object.

    name: the detection class; empty for scenery.
    size_m: mean length, width and height; instances differ by a few per cent.
    share: weight in the draw of the objects beyond `each_class`.
    range_m: nuScenes evaluates the class up to this distance.
    moving: probability that an instance moves.
    on_road: whether it keeps to lanes and kerbs when it is on the road.
    """

    name: str = ""
    category: str = ""
    size_m: tuple[float, float, float]
    build: Build
    share: float = 0.01
    range_m: float = 50.0
    moving: float = 0.0
    speed_mps: tuple[float, float] = (0.0, 0.0)
    attributes: Attributes = Attributes()
    on_road: bool = False


_vehicle = partial(
    Kind,
    speed_mps=(2.0, 7.0),
    attributes=Attributes(moving="vehicle.moving", stopped="vehicle.stopped", parked="vehicle.parked"),
    on_road=True,
)
_ridden = partial(
    Kind,
    range_m=40.0,
    moving=1.0,
    attributes=Attributes(moving="cycle.with_rider", stopped="cycle.with_rider", parked="cycle.with_rider"),
    on_road=True,
)
_parked = partial(
    Kind, range_m=40.0, attributes=Attributes(stopped="cycle.without_rider", parked="cycle.without_rider")
)
_PEDESTRIAN = Attributes(moving="pedestrian.moving", stopped="pedestrian.standing", parked="pedestrian.standing")
_MOTORCYCLE, _BICYCLE = "vehicle.motorcycle", "vehicle.bicycle"
_parked_motorcycle, _parked_bicycle = partial(shapes.motorcycle, rider=False), partial(shapes.bicycle, rider=False)

# fmt: off
KINDS = (
    _vehicle(name="car", category="vehicle.car", size_m=(4.6, 1.95, 1.7), build=shapes.car, share=0.45, moving=0.4),
    _vehicle(name="truck", category="vehicle.truck", size_m=(6.9, 2.5, 2.9), build=shapes.truck, share=0.05,
             moving=0.4),
    _vehicle(name="bus", category="vehicle.bus.rigid", size_m=(10.8, 2.9, 3.4), build=shapes.bus, moving=0.5),
    _vehicle(name="trailer", category="vehicle.trailer", size_m=(9.6, 2.7, 3.8), build=shapes.trailer, moving=0.2),
    _vehicle(name="construction_vehicle", category="vehicle.construction", size_m=(6.2, 2.8, 3.1),
             build=shapes.construction_vehicle, moving=0.2),
    _ridden(name="motorcycle", category=_MOTORCYCLE, size_m=(2.1, 0.8, 1.55), build=shapes.motorcycle,
            speed_mps=(3.0, 7.0)),
    _parked(name="motorcycle", category=_MOTORCYCLE, size_m=(2.1, 0.8, 1.1), build=_parked_motorcycle),
    _ridden(name="bicycle", category=_BICYCLE, size_m=(1.75, 0.65, 1.7), build=shapes.bicycle, speed_mps=(1.5, 4.0)),
    _parked(name="bicycle", category=_BICYCLE, size_m=(1.75, 0.65, 1.05), build=_parked_bicycle),
    Kind(name="pedestrian", category="human.pedestrian.adult", size_m=(0.7, 0.68, 1.77), build=shapes.pedestrian,
         share=0.23, range_m=40.0, moving=0.6, speed_mps=(0.6, 1.8), attributes=_PEDESTRIAN),
    Kind(name="barrier", category="movable_object.barrier", size_m=(0.55, 2.4, 1.0), build=shapes.barrier,
         share=0.12, range_m=30.0),
    Kind(name="traffic_cone", category="movable_object.trafficcone", size_m=(0.45, 0.45, 1.05),
         build=shapes.traffic_cone, share=0.08, range_m=30.0),
)
# fmt: on
TREE = Kind(size_m=(2.6, 2.6, 5.5), build=shapes.tree)
BUILDING = Kind(size_m=(16.0, 10.0, 10.0), build=shapes.building)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Constant velocity in road coordinates; `turn_rad` is the heading relative to the lane's direction."""

    s_m: float
    d_m: float
    s_mps: float = 0.0
    d_mps: float = 0.0
    turn_rad: float = 0.0

    @property
    def is_moving(self) -> bool:
        """Whether the speed is not zero."""
        return self.s_mps != 0 or self.d_mps != 0

    def at(self, road: Road, time_s: Values) -> tuple[Values, Values, Values]:
        """x, y and yaw in the map frame."""
        x, y, lane_rad = road.to_map(self.s_m + self.s_mps * time_s, self.d_m + self.d_mps * time_s)
        return x, y, lane_rad + self.turn_rad


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One object of a scene; `solid_m` is the length, width and height of the hull of its parts."""

    kind: Kind
    solid_m: tuple[float, float, float]
    shape: Shape
    motion: Motion

    @property
    def attribute(self) -> str:
        """The name of its nuScenes attribute; a vehicle that does not move is stopped in a lane, else parked."""
        attributes = self.kind.attributes
        if self.motion.is_moving:
            return attributes.moving
        in_lane = any(self.motion.d_m == offset_m for offset_m, _ in LANES)
        return attributes.stopped if in_lane else attributes.parked

    @property
    def box_m(self) -> tuple[float, float, float]:
        """Length, width and height of the annotated box, whose bottom lies on the ground."""
        length, width, height = self.solid_m
        return length + 2 * MARGIN_M, width + 2 * MARGIN_M, height + MARGIN_M
