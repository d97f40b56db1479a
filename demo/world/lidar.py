"""A spinning LiDAR at the mount of nuScenes' LIDAR_TOP, and the sweeps it measures."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from demo.world.config import WorldConfig
from demo.world.ray_casting import GROUND, Corners, Hits, Rays, Solids, Window, cast_rays, surface_at
from demo.world.road import ground_cover
from demo.world.scene import Scene

CHANNEL = "LIDAR_TOP"
POSITION_M = (0.94, 0.0, 1.84)
YAW_DEG = -90.0
"""The sensor's x axis points to the right of the vehicle, its y axis forward."""
ELEVATIONS_DEG = (-30.0, 10.0)
MIN_RANGE_M = 0.5
_GROUND_REFLECTIVITY = (0.08, 0.6, 0.2, 0.14)
"""Asphalt, markings, pavement, verge."""


def simulate_sweep(
    scene: Scene, time_s: float, world: WorldConfig, rng: np.random.Generator
) -> Float[np.ndarray, "N 5"]:
    """One rotation, without motion distortion.

    Returns:
        float32 (N, 5): x, y, z in the sensor's frame, intensity 0 .. 255, ring (0 is the lowest).
    """
    rays, solids = lidar_rays(world), Solids.of(scene.actors, scene.poses_in_ego(time_s))
    hits = cast_rays(rays, solids)
    intensity = _intensity(scene, time_s, rays, solids, hits)
    measured = hits.depth + rng.normal(0, world.lidar_noise_m, hits.depth.shape)
    returned = (hits.depth > MIN_RANGE_M) & (hits.depth < world.lidar_range_m)
    ring = np.broadcast_to(np.arange(world.lidar_beams)[:, None], hits.depth.shape)
    forward, left, up = np.where(returned, measured, 0.0) * rays.directions
    values = np.stack([-left, forward, up, intensity, ring], axis=-1)
    # Column by column, as the sensor turns.
    return values.transpose(1, 0, 2)[returned.T].astype(np.float32)


def count_points_in_boxes(
    points: Float[np.ndarray, "N 5"], boxes: Float[np.ndarray, "A 3"], poses: Float[np.ndarray, "A 3"]
) -> Int[np.ndarray, "A"]:
    """Number of points within each box.

    Args:
        points: A sweep of `simulate_sweep`.
        boxes: Length, width and height of boxes on the ground.
        poses: x, y and yaw in the ego frame.
    """
    right, forward, up = points[:, :3].astype(np.float64).T + 0.0
    x, y, z = forward + POSITION_M[0], -right + POSITION_M[1], up + POSITION_M[2]
    counts = []
    for (length, width, height), (box_x, box_y, yaw) in zip(boxes, poses, strict=True):
        cos, sin = np.cos(yaw), np.sin(yaw)
        along, across = cos * (x - box_x) + sin * (y - box_y), cos * (y - box_y) - sin * (x - box_x)
        within = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2) & (z >= 0) & (z <= height)
        counts.append(int(within.sum()))
    return np.asarray(counts)


@lru_cache(maxsize=1)
def lidar_rays(world: WorldConfig) -> Rays:
    """A ray for each beam (row, the lowest first) and azimuth (column, clockwise from the rear in top view)."""
    elevation = np.radians(np.linspace(*ELEVATIONS_DEG, world.lidar_beams))[:, None]
    step = 2 * np.pi / world.lidar_azimuths
    azimuth = np.pi - (np.arange(world.lidar_azimuths)[None, :] + 0.5) * step
    forward, left = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    directions = np.stack(np.broadcast_arrays(forward, left, np.sin(elevation)))

    def window(corners: Corners) -> Window | None:
        x, y = (corners[:, :2] - POSITION_M[:2]).T
        middle = np.arctan2(y.mean(), x.mean())
        spread = np.mod(np.arctan2(y, x) - middle + np.pi, 2 * np.pi) - np.pi
        first = np.floor((np.pi - middle - spread.max()) / step).astype(int) - 1
        last = np.ceil((np.pi - middle - spread.min()) / step).astype(int) + 1
        return slice(0, world.lidar_beams), np.arange(first, last) % world.lidar_azimuths

    return Rays(origin=np.asarray(POSITION_M), directions=directions, window=window)


def _intensity(scene: Scene, time_s: float, rays: Rays, solids: Solids, hits: Hits) -> Float[np.ndarray, "H W"]:
    """255 times the reflectivity and the cosine of incidence (Lambert)."""
    directions, part, share = rays.directions.reshape(3, -1), hits.part.ravel(), np.zeros(hits.part.size)
    ground, objects = np.flatnonzero(part == GROUND), np.flatnonzero(part >= 0)
    reflectivity = np.asarray([material.reflectivity for material in scene.materials])
    normal = surface_at(hits.points(rays, objects), part[objects], solids).normal
    cosine = -(directions[:, objects] * normal).sum(axis=0)
    share[objects] = reflectivity[part[objects]] * np.clip(cosine, 0, 1)
    x, y, _ = hits.points(rays, ground)
    s_m, d_m = scene.road.from_vehicle(scene.ego_pose(time_s), x, y)
    share[ground] = np.asarray(_GROUND_REFLECTIVITY)[ground_cover(s_m, d_m)] * -directions[2, ground]
    return 255 * share.reshape(hits.part.shape)
