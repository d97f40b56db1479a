"""A circular road that the ego vehicle follows: its coordinates, its lanes and the ground beside it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Lane = tuple[float, int]
"""Offset to the left of the ego lane in metres, and direction of travel."""
LANES: tuple[Lane, ...] = ((-3.6, 1), (0.0, 1), (3.6, -1), (7.2, -1))
"""Right-hand traffic."""
OPEN_LANES: tuple[Lane, ...] = ((0.0, 1), (7.2, -1))
"""Lanes not next to the ego's: there, buses and stopped vehicles do not block the ego's view for long."""
KERBS: tuple[Lane, ...] = ((-7.2, 1), (10.8, -1))
"""Where vehicles are parked."""
EDGES_M = (-9.0, 12.6)
PAVEMENT_M = 3.0
MARKINGS_M = (-5.4, -1.8, 1.8, 5.4, 9.0)

ASPHALT, MARKING, PAVEMENT, VERGE = range(4)

Values = Float[np.ndarray, "N"]
Pose2d = tuple[float, float, float]
"""x, y in metres and yaw in radians, in the map frame."""


@dataclass(frozen=True, kw_only=True)
class Road:
    """An arc in the map frame. Road coordinates: s along the ego lane, d to its left, both in metres.

    radius_m: positive for a bend to the left.
    x_m, y_m, yaw_rad: position and direction of travel at s = d = 0.
    """

    radius_m: float
    x_m: float
    y_m: float
    yaw_rad: float

    def to_map(self, s_m: Values, d_m: Values) -> tuple[Values, Values, Values]:
        """Road coordinates to x, y and the lane's direction, in the map frame."""
        angle = s_m / self.radius_m
        forward = (self.radius_m - d_m) * np.sin(angle)
        left = self.radius_m - (self.radius_m - d_m) * np.cos(angle)
        cos, sin = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        x, y = self.x_m + cos * forward - sin * left, self.y_m + sin * forward + cos * left
        return x, y, self.yaw_rad + angle

    def from_map(self, x_m: Values, y_m: Values) -> tuple[Values, Values]:
        """The inverse of `to_map`: s and d."""
        cos, sin = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        forward = cos * (x_m - self.x_m) + sin * (y_m - self.y_m)
        left = cos * (y_m - self.y_m) - sin * (x_m - self.x_m)
        sign = np.sign(self.radius_m)
        to_centre = self.radius_m - left
        angle = np.arctan2(sign * forward, sign * to_centre)
        return self.radius_m * angle, self.radius_m - sign * np.hypot(forward, to_centre)

    def from_vehicle(self, vehicle: Pose2d, ahead_m: Values, left_m: Values) -> tuple[Values, Values]:
        """Road coordinates of points in the frame of a vehicle at this pose."""
        x, y, yaw = np.asarray(vehicle, dtype=ahead_m.dtype)
        cos, sin = np.cos(yaw), np.sin(yaw)
        return self.from_map(x + cos * ahead_m - sin * left_m, y + sin * ahead_m + cos * left_m)

    def pose(self, s_m: float) -> Pose2d:
        """The pose of a vehicle in the ego lane."""
        x, y, yaw = self.to_map(np.asarray([s_m]), np.zeros(1))
        return float(x[0]), float(y[0]), float(yaw[0])


def ground_cover(s_m: Values, d_m: Values) -> Int[np.ndarray, "N"]:
    """ASPHALT, MARKING, PAVEMENT or VERGE at each point of the ground."""
    right, left = EDGES_M
    cover = np.full(d_m.shape, VERGE, dtype=np.int8)
    cover[(d_m > right - PAVEMENT_M) & (d_m < left + PAVEMENT_M)] = PAVEMENT
    cover[(d_m > right) & (d_m < left)] = ASPHALT
    dash = np.mod(s_m, 6.0) < 3.0
    for line in MARKINGS_M:
        cover[dash & (np.abs(d_m - line) < 0.1)] = MARKING
    return cover
