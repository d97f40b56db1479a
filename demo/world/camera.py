"""Six cameras in nuScenes' layout, and the images they take."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8

from demo.world.ray_casting import Hits, Rays, Solids, Window, cast_rays, intersect_boxes, rotate_z, surface_at
from demo.world.scene import Scene
from demo.world.shading import add_haze, ground_colours, object_colours, sky_colours

NEAR_M = 0.1


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera with a horizontal optical axis: its position and direction in the ego frame.

    focal: focal length in image widths.
    """

    name: str
    position_m: tuple[float, float, float]
    yaw_deg: float
    focal: float

    @property
    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """Camera (x right, y down, z forward) to ego."""
        cos, sin = np.cos(np.radians(self.yaw_deg)), np.sin(np.radians(self.yaw_deg))
        return np.asarray([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])

    def intrinsics(self, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
        """For images of (height, width); pixel (column, row) covers column .. column + 1, row .. row + 1."""
        height, width = size
        focal = self.focal * width
        return np.asarray([[focal, 0.0, 0.51 * width], [0.0, focal, 0.54 * height], [0.0, 0.0, 1.0]])


CAMERAS = (
    Camera(name="CAM_FRONT", position_m=(1.70, 0.0, 1.51), yaw_deg=0.0, focal=0.79),
    Camera(name="CAM_FRONT_RIGHT", position_m=(1.55, -0.49, 1.50), yaw_deg=-56.0, focal=0.79),
    Camera(name="CAM_BACK_RIGHT", position_m=(1.02, -0.48, 1.56), yaw_deg=-110.0, focal=0.79),
    Camera(name="CAM_BACK", position_m=(0.03, 0.0, 1.58), yaw_deg=180.0, focal=0.505),
    Camera(name="CAM_BACK_LEFT", position_m=(1.04, 0.48, 1.59), yaw_deg=110.0, focal=0.79),
    Camera(name="CAM_FRONT_LEFT", position_m=(1.52, 0.49, 1.51), yaw_deg=56.0, focal=0.79),
)


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """An RGB image and the first hit of each pixel's ray."""

    image: UInt8[np.ndarray, "H W 3"]
    hits: Hits


def render(scene: Scene, time_s: float, camera: Camera, size: tuple[int, int]) -> Rendering:
    """The image that a camera takes of a scene; `size` is (height, width)."""
    rays, ego, light = camera_rays(camera, size), scene.ego_pose(time_s), scene.light
    solids, sun = Solids.of(scene.actors, scene.poses_in_ego(time_s)), light.sun_in_ego(ego[2])
    hits = cast_rays(rays, solids)
    # The optical axes are horizontal: the ground fills the rows below the horizon.
    sky_rows = int(np.isinf(rays.ground_depth[:, 0]).sum())
    sky = sky_colours(rays.directions[:, :sky_rows].reshape(3, -1), light)
    ground = rays.origin[:, None, None] + rays.ground_depth[sky_rows:] * rays.directions[:, sky_rows:]
    in_sun, ground = ~_shadows(ground, rays, solids, sun).ravel(), ground.reshape(3, -1)
    painted = ground_colours(ground, in_sun, ego, scene.road, light)
    colours = np.concatenate([sky, add_haze(painted, np.hypot(ground[0], ground[1]), light)], axis=1)
    objects = np.flatnonzero(hits.part >= 0)
    parts = hits.part.ravel()[objects]
    faces = surface_at(hits.points(rays, objects), parts, solids)
    painted = object_colours(scene.materials, parts, faces, light, sun)
    colours[:, objects] = add_haze(painted, hits.depth.ravel()[objects], light)
    image = np.clip(colours + 0.5, 0, 255).astype(np.uint8).reshape(3, *size)
    return Rendering(image=np.ascontiguousarray(image.transpose(1, 2, 0)), hits=hits)


@lru_cache(maxsize=len(CAMERAS))
def camera_rays(camera: Camera, size: tuple[int, int]) -> Rays:
    """A ray through the centre of every pixel, with depth along the optical axis."""
    height, width = size
    intrinsics, rotation, position = camera.intrinsics(size), camera.rotation, np.asarray(camera.position_m)
    right = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    down = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    in_camera = np.stack(np.broadcast_arrays(right[None, :], down[:, None], np.ones((1, 1))))
    directions = np.einsum("ij,jhw->ihw", rotation, in_camera).astype(np.float32)
    return Rays(
        origin=position.astype(np.float32),
        directions=directions,
        window=lambda corners: _window(rotation.T @ (corners - position).T, intrinsics, size),
    )


def _window(
    corners: Float[np.ndarray, "3 N"], intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> Window | None:
    """The pixels that an object with these corners can cover; None if it lies outside of the frustum."""
    (x, y, z), (height, width) = corners, size
    u = intrinsics[0, 0] * x + intrinsics[0, 2] * z
    v = intrinsics[1, 1] * y + intrinsics[1, 2] * z
    outside = (u < 0, u > width * z, v < 0, v > height * z, z < NEAR_M)
    if any(side.all() for side in outside):
        return None
    if (z < NEAR_M).any():
        return slice(0, height), slice(0, width)
    columns, rows = np.clip(u / z, 0, width), np.clip(v / z, 0, height)
    return slice(int(rows.min()), int(np.ceil(rows.max()))), slice(int(columns.min()), int(np.ceil(columns.max())))


def _shadows(
    ground: Float[np.ndarray, "3 R W"], rays: Rays, solids: Solids, sun: Float[np.ndarray, "3"]
) -> Bool[np.ndarray, "R W"]:
    """Where a solid hides the sun from the ground points of the lowest R rows of pixels."""
    shadow = np.zeros(ground.shape[1:], dtype=bool)
    sky_rows = rays.directions.shape[1] - len(shadow)
    for actor, (x, y, yaw) in enumerate(solids.poses):
        corners, parts = solids.corners(actor), solids.parts_of(actor)
        projected = corners - sun * (corners[:, 2:] / sun[2])
        window = rays.window(np.concatenate([corners, projected]))
        if window is None or window[0].stop <= sky_rows:
            continue
        window = slice(max(window[0].start - sky_rows, 0), window[0].stop - sky_rows), window[1]
        centre = np.asarray([[x], [y], [0.0]], dtype=np.float32)
        points: Float[np.ndarray, "3 N"] = ground[:, *window].reshape(3, -1) - centre
        to_sun = rotate_z(sun, -yaw).astype(np.float32)[:, None]
        depth, _ = intersect_boxes(rotate_z(points, -yaw), to_sun, solids.low[parts], solids.high[parts])
        shadow[window] |= np.isfinite(depth).reshape(shadow[window].shape)
    return shadow
