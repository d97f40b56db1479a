"""A key frame: what both stages need to know about it, with every path and pose resolved.

Frame of all geometry, unless a name says otherwise: the LiDAR at the key frame's time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cache.nuscenes.poses import Matrix

EXCLUDE = "Unpack the data set's blobs again, or leave the frame out with data.exclude (for a dump: exclude)"
SKIP_MISSING = (
    "Unpack the data set's blobs again, or leave such frames out with data.skip_missing=true (for a dump: skip_missing)"
)
"""The cures of faults of sensors' files."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One LiDAR rotation; `to_key` takes its points to the key frame's LiDAR, `lag_s` is its age in seconds."""

    path: Path
    to_key: Matrix
    lag_s: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One image; `to_lidar` takes camera coordinates (x right, y down, z forward) to the key frame's LiDAR."""

    name: str
    path: Path
    intrinsics: Float[np.ndarray, "3 3"]
    to_lidar: Matrix
    size: tuple[int, int]
    """(height, width) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A key frame ("sample" in nuScenes).

    boxes: x, y, z (bottom centre), dx (length), dy (width), dz (height) in metres, yaw_rad (counter-clockwise from
        +x: mmdet3d 1.x), vx, vy in m/s (0 where nuScenes knows none). Only boxes of the ten classes that hold a LiDAR
        or radar point; empty for a split without annotations.
    sweeps: the key frame's own rotation first, then older and older ones.
    previous: token of the key frame before this one in its scene.
    """

    token: str
    scene: str
    timestamp_us: int
    sweeps: tuple[Sweep, ...]
    cameras: tuple[Camera, ...]
    boxes: Float[np.ndarray, "M 9"]
    labels: Int[np.ndarray, "M"]
    lidar_to_ego: Matrix
    ego_to_global: Matrix
    previous: str | None

    @property
    def lidar_to_global(self) -> Matrix:
        """From the key frame's LiDAR to nuScenes' map frame."""
        return self.ego_to_global @ self.lidar_to_ego
