"""Image augmentation, as realised matrices; BEV augmentation is in cache.geometry.views.

Pixel coordinates are those of pixel centres: (0, 0) is the centre of the first pixel.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from student.config.student import ImageConfig

Affine = Float[np.ndarray, "3 3"]


def image_matrix(
    config: ImageConfig, source_size: tuple[int, int], rng: np.random.Generator | None
) -> Float[np.ndarray, "3 3"]:
    """Original pixels (u, v, 1) -> pixels of the network's input.

    The steps of the public BEVDet code: resize so that the widths match, times a draw; crop to the input's size at the
    bottom and in the middle; flip left and right; rotate about the centre.

    Args:
        source_size: (height, width) of the original image.
        rng: None for evaluation, which draws nothing.
    """
    height, width = config.size
    source_height, source_width = source_size
    ratio = width / source_width
    flip, rotation_rad, below, across = False, 0.0, 0.0, 0.5
    if rng is None:
        ratio += config.resize_test
    else:
        ratio += rng.uniform(*config.resize)
        below = rng.uniform(*config.crop_height)
        across = rng.uniform(0, 1)
        flip = config.flip and bool(rng.integers(2))
        rotation_rad = np.deg2rad(rng.uniform(*config.rotation_deg))
    left = across * max(0.0, ratio * source_width - width)
    top = (1 - below) * ratio * source_height - height
    matrix = _about_corner(np.diag([ratio, ratio, 1.0]))
    matrix = _translation(-left, -top) @ matrix
    if flip:
        matrix = _translation(width - 1, 0) @ np.diag([-1.0, 1.0, 1.0]) @ matrix
    center = ((width - 1) / 2, (height - 1) / 2)
    return _translation(*center) @ _rotation(rotation_rad) @ _translation(-center[0], -center[1]) @ matrix


def warp_image(image: UInt8[np.ndarray, "H W 3"], matrix: Affine, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Apply a matrix of `image_matrix` (bilinear; black outside the original)."""
    return cv2.warpAffine(image, matrix[:2], (size[1], size[0]), flags=cv2.INTER_LINEAR)


def reduced_pixels(factor_x: float, factor_y: float) -> Affine:
    """Pixels of an image decoded at 1 / factor of its size -> pixels of the original."""
    return _about_corner(np.diag([factor_x, factor_y, 1.0]))


def _about_corner(matrix: Affine) -> Affine:
    """A matrix of continuous image coordinates, whose origin is the first pixel's corner, in pixel centres."""
    return _translation(-0.5, -0.5) @ matrix @ _translation(0.5, 0.5)


def _translation(x: float, y: float) -> Affine:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _rotation(angle_rad: float) -> Affine:
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
