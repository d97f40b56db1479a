"""The key frame's LiDAR points in its cameras -> the depth targets of a depth net (BEVDepth, section 3.2)."""

import numpy as np
from jaxtyping import Float

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
