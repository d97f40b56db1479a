"""The key frame's LiDAR points in its cameras -> the depth that a depth net is taught (BEVDepth, section 3.2)."""

import numpy as np
from jaxtyping import Float

from cache.frames import Frame
from cache.points import load_points
from cache.spec import PointPipeline
from student.config import StudentConfig

KEY_SWEEP_ONLY = PointPipeline(past_sweeps=0, pad_empty_sweeps=False)


def camera_points(frame: Frame, nearest_m: float) -> list[Float[np.ndarray, "_ 3"]]:
    """u, v (original pixels) and depth (metres along the optical axis) of the key sweep's points in each image.

    Args:
        nearest_m: points that are not farther away than this are left out.

    Raises:
        DataError: see `cache.points.load_points`.
    """
    points = load_points(frame, KEY_SWEEP_ONLY)[:, :3].astype(np.float64)
    found = []
    for camera in frame.cameras:
        lidar_to_camera = np.linalg.inv(camera.to_lidar)
        seen = points @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
        seen = seen[seen[:, 2] > nearest_m]
        pixels = (seen / seen[:, 2:]) @ camera.intrinsics[:2].T
        height, width = camera.size
        inside = ((pixels >= -0.5) & (pixels < (width - 0.5, height - 0.5))).all(axis=1)
        found.append(np.column_stack([pixels, seen[:, 2]])[inside])
    return found


def depth_map(
    points: list[Float[np.ndarray, "_ 3"]], image_matrices: list[Float[np.ndarray, "3 3"]], config: StudentConfig
) -> Float[np.ndarray, "N hs ws"]:
    """Depth (metres) of the nearest of `camera_points` in each patch of the input images; 0 where there is none.

    Patches are detector.image_stride pixels square. `image_matrices` take original pixels to those of the input.
    """
    stride = config.detector.image_stride
    rows, columns = (side // stride for side in config.image.size)
    depth = np.full((len(points), rows, columns), np.inf, dtype=np.float32)
    for nearest, seen, matrix in zip(depth, points, image_matrices, strict=True):
        pixels = seen[:, :2] @ matrix[:2, :2].T + matrix[:2, 2]
        patch = np.floor((pixels + 0.5) / stride).astype(np.int64)
        inside = ((patch >= 0) & (patch < (columns, rows))).all(axis=1)
        np.minimum.at(nearest, (patch[inside, 1], patch[inside, 0]), seen[inside, 2])
    return np.where(np.isinf(depth), 0, depth)
