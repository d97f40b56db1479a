"""The key frame's LiDAR points in its cameras -> the depth targets of a depth net (BEVDepth, section 3.2)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cache.nuscenes.frame import Camera
from student.config.student import StudentConfig


def depth_map(
    points: list[Float[np.ndarray, "_ 3"]], image_matrices: list[Float[np.ndarray, "3 3"]], config: StudentConfig
) -> Float[np.ndarray, "N hs ws"]:
    """Depth (metres) of the nearest of the cameras' points in each patch of the input images; 0 where there is none.

    Points are those of `cache.nuscenes.points.camera_points`, patches detector.image_stride pixels square.
    `image_matrices` take original pixels to those of the input.
    """
    stride = config.detector.image_stride
    rows, columns = (side // stride for side in config.image.size)
    depth = np.full((len(points), rows, columns), np.inf, dtype=np.float32)
    for nearest, in_camera, matrix in zip(depth, points, image_matrices, strict=True):
        pixels = in_camera[:, :2] @ matrix[:2, :2].T + matrix[:2, 2]
        patch = np.floor((pixels + 0.5) / stride).astype(np.int64)
        inside = ((patch >= 0) & (patch < (columns, rows))).all(axis=1)
        np.minimum.at(nearest, (patch[inside, 1], patch[inside, 0]), in_camera[inside, 2])
    return np.where(np.isinf(depth), 0, depth)


def nearest_points(
    points: list[Float[np.ndarray, "_ 3"]], image_matrices: list[Float[np.ndarray, "3 3"]], config: StudentConfig
) -> Float[np.ndarray, "N hs ws 3"]:
    """u, v (original pixels) and depth of the points that `depth_map` keeps; zeros where there is none."""
    stride = config.detector.image_stride
    rows, columns = (side // stride for side in config.image.size)
    nearest = np.zeros((len(points), rows, columns, 3), dtype=np.float64)
    for kept, in_camera, matrix in zip(nearest, points, image_matrices, strict=True):
        farthest_first = in_camera[np.argsort(-in_camera[:, 2], kind="stable")]
        pixels = farthest_first[:, :2] @ matrix[:2, :2].T + matrix[:2, 2]
        patch = np.floor((pixels + 0.5) / stride).astype(np.int64)
        inside = ((patch >= 0) & (patch < (columns, rows))).all(axis=1)
        # Of several points in a patch the last one, the nearest, is assigned.
        kept[patch[inside, 1], patch[inside, 0]] = farthest_first[inside]
    return nearest


def in_bev(
    nearest: Float[np.ndarray, "N hs ws 3"], cameras: Sequence[Camera], matrix: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "N hs ws 3"]:
    """Points u, v and depth of cameras as x, y, z in metres of the BEV frame.

    Args:
        matrix: LiDAR -> BEV.
    """
    places = []
    for points, camera in zip(nearest, cameras, strict=True):
        pixels = np.concatenate([points[..., :2], np.ones_like(points[..., :1])], axis=-1)
        in_camera = pixels @ np.linalg.inv(camera.intrinsics).T * points[..., 2:]
        to_bev = matrix @ camera.to_lidar
        places.append(in_camera @ to_bev[:3, :3].T + to_bev[:3, 3])
    return np.stack(places)
