"""Six cameras in nuScenes' layout, and what they see."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8

from demo.world.ray_casting import Corners, Hits, Rays, Solids, Window, cast, surface, trace, turned
from demo.world.scene import Scene
from demo.world.shading import ground_colours, hazy, object_colours, sky_colours

NEAR_M = 0.1


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera that looks along the horizon: its place and direction in the ego frame.

    focal: in widths of the image.
    """

    name: str
    place_m: tuple[float, float, float]
    yaw_deg: float
    focal: float

    @property
    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """Camera (x right, y down, z forward) to ego."""
        cos, sin = np.cos(np.radians(self.yaw_deg)), np.sin(np.radians(self.yaw_deg))
        return np.asarray([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])

    def intrinsics(self, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
        """Of an image of that height and width; pixel (column, row) covers column .. column + 1, row .. row + 1."""
        height, width = size
        focal = self.focal * width
        return np.asarray([[focal, 0.0, 0.51 * width], [0.0, focal, 0.54 * height], [0.0, 0.0, 1.0]])


CAMERAS = (
    Camera(name="CAM_FRONT", place_m=(1.70, 0.0, 1.51), yaw_deg=0.0, focal=0.79),
    Camera(name="CAM_FRONT_RIGHT", place_m=(1.55, -0.49, 1.50), yaw_deg=-56.0, focal=0.79),
    Camera(name="CAM_BACK_RIGHT", place_m=(1.02, -0.48, 1.56), yaw_deg=-110.0, focal=0.79),
    Camera(name="CAM_BACK", place_m=(0.03, 0.0, 1.58), yaw_deg=180.0, focal=0.505),
    Camera(name="CAM_BACK_LEFT", place_m=(1.04, 0.48, 1.59), yaw_deg=110.0, focal=0.79),
    Camera(name="CAM_FRONT_LEFT", place_m=(1.52, 0.49, 1.51), yaw_deg=56.0, focal=0.79),
)


@lru_cache(maxsize=len(CAMERAS))
def camera_rays(camera: Camera, size: tuple[int, int]) -> Rays:
    """A ray through the centre of every pixel; depth along it is depth along the optical axis."""
    height, width = size
    intrinsics, rotation, place = camera.intrinsics(size), camera.rotation, np.asarray(camera.place_m)
    right = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    down = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    in_camera = np.stack(np.broadcast_arrays(right[None, :], down[:, None], np.ones((1, 1))))
    directions = np.einsum("ij,jhw->ihw", rotation, in_camera).astype(np.float32)

    def window(corners: Corners) -> Window | None:
        return _window(rotation.T @ (corners - place).T, intrinsics, size)

    return Rays(origin=place.astype(np.float32), directions=directions, window=window)


def _window(
    corners: Float[np.ndarray, "3 N"], intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int]
) -> Window | None:
    """The pixels that an object with these corners can cover, or None: it is outside of a plane of the view."""
    (x, y, z), (height, width) = corners, size
    u = intrinsics[0, 0] * x + intrinsics[0, 2] * z
    v = intrinsics[1, 1] * y + intrinsics[1, 2] * z
    outside = (u < 0, u > width * z, v < 0, v > height * z, z < NEAR_M)
    if any(side.all() for side in outside):
        return None
    if (z < NEAR_M).any():
        return slice(0, height), slice(0, width)
    columns, rows = np.clip(u / z, 0, width), np.clip(v / z, 0, height)
    return (
        slice(int(rows.min()), int(np.ceil(rows.max()))),
        slice(int(columns.min()), int(np.ceil(columns.max()))),
    )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An RGB image and what each of its pixels shows."""

    image: UInt8[np.ndarray, "H W 3"]
    hits: Hits


def take_picture(scene: Scene, time_s: float, camera: Camera, size: tuple[int, int]) -> Picture:
    """What a camera sees of a scene; `size` is (height, width)."""
    rays, ego, light = camera_rays(camera, size), scene.ego_pose(time_s), scene.light
    solids, sun = Solids.of(scene.actors, scene.poses_in_ego(time_s)), light.sun_in(ego[2])
    hits = trace(rays, solids)
    # The cameras look along the horizon: the ground fills the rows below it.
    sky_rows = int(np.isinf(rays.ground_depth[:, 0]).sum())
    ground = rays.origin[:, None, None] + rays.ground_depth[sky_rows:] * rays.directions[:, sky_rows:]
    in_sun, ground = ~_shadows(ground, rays, solids, sun).ravel(), ground.reshape(3, -1)
    painted = ground_colours(ground, in_sun, ego, scene.road, light)
    colours = np.concatenate(
        [
            sky_colours(rays.directions[:, :sky_rows].reshape(3, -1), light),
            hazy(painted, np.hypot(ground[0], ground[1]), light),
        ],
        axis=1,
    )
    objects = np.flatnonzero(hits.part >= 0)
    parts = hits.part.ravel()[objects]
    faces = surface(hits.points(rays, objects), parts, solids)
    painted = object_colours(scene.materials, parts, faces, light, sun)
    colours[:, objects] = hazy(painted, hits.depth.ravel()[objects], light)
    image = np.clip(colours + 0.5, 0, 255).astype(np.uint8).reshape(3, *size)
    return Picture(image=np.ascontiguousarray(image.transpose(1, 2, 0)), hits=hits)


def _shadows(
    ground: Float[np.ndarray, "3 R W"], rays: Rays, solids: Solids, sun: Float[np.ndarray, "3"]
) -> Bool[np.ndarray, "R W"]:
    """Points of the ground, those of the lowest R rows of pixels, from which a solid hides the sun."""
    shadow = np.zeros(ground.shape[1:], dtype=bool)
    sky_rows = rays.directions.shape[1] - len(shadow)
    for actor, (x, y, yaw) in enumerate(solids.poses):
        corners, parts = solids.corners(actor), solids.parts_of(actor)
        fallen = corners - sun * (corners[:, 2:] / sun[2])
        window = rays.window(np.concatenate([corners, fallen]))
        if window is None or window[0].stop <= sky_rows:
            continue
        window = slice(max(window[0].start - sky_rows, 0), window[0].stop - sky_rows), window[1]
        points: Float[np.ndarray, "3 N"] = ground[:, *window].reshape(3, -1) - np.asarray(
            [[x], [y], [0.0]], dtype=np.float32
        )
        to_sun = turned(sun, -yaw).astype(np.float32)[:, None]
        depth, _ = cast(turned(points, -yaw), to_sun, solids.low[parts], solids.high[parts])
        shadow[window] |= np.isfinite(depth).reshape(shadow[window].shape)
    return shadow
