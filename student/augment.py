"""Augmentation of images and of the BEV space, as the matrices that were realised.

Pixel coordinates are those of pixel centres: (0, 0) is the centre of the first pixel.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from student.config import BevAugmentConfig, ImageConfig

Affine = Float[np.ndarray, "3 3"]


def image_matrix(
    config: ImageConfig, source_size: tuple[int, int], rng: np.random.Generator | None
) -> Float[np.ndarray, "3 3"]:
    """Original pixels (u, v, 1) -> pixels of the network's input.

    The steps of the public BEVDet code: resize so that the widths match, times a draw; crop to the input's size at the
    bottom and in the middle; flip left and right; rotate about the centre.

    Args:
        source_size: (height, width) of the original image.
        rng: where the draws come from; None for evaluation (no draw at all).
    """
    height, width = config.size
    source_height, source_width = source_size
    ratio = width / source_width
    flip, rotation_rad, below, across = False, 0.0, 0.0, 0.5
    if rng is not None:
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


def bev_matrix(config: BevAugmentConfig, rng: np.random.Generator | None) -> Float[np.ndarray, "4 4"]:
    """LiDAR -> augmented BEV: rotate, scale, then negate x and y with even odds, the order of the public code.

    Args:
        rng: where the draws come from; None for evaluation (the identity).
    """
    matrix = np.eye(4)
    if rng is None:
        return matrix
    matrix[:2, :2] = _rotation(np.deg2rad(rng.uniform(*config.rotation_deg)))[:2, :2]
    matrix[:3] *= rng.uniform(*config.scale)
    if config.flip_x and rng.integers(2):
        matrix[0] *= -1
    if config.flip_y and rng.integers(2):
        matrix[1] *= -1
    return matrix


def move_boxes(boxes: Float[np.ndarray, "M 9"], matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "M 9"]:
    """Boxes (x, y, z, dx, dy, dz, yaw_rad, vx, vy) under a similarity of the BEV space: a `bev_matrix`."""
    linear = matrix[:3, :3]
    scale = np.cbrt(abs(np.linalg.det(linear)))
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=-1) @ linear[:2, :2].T
    return np.concatenate(
        [
            boxes[:, :3] @ linear.T + matrix[:3, 3],
            boxes[:, 3:6] * scale,
            np.arctan2(heading[:, 1], heading[:, 0])[:, None],
            boxes[:, 7:9] @ linear[:2, :2].T,
        ],
        axis=1,
    ).astype(np.float32)


def _about_corner(matrix: Affine) -> Affine:
    """A matrix of continuous image coordinates, whose origin is the first pixel's corner, in pixel centres."""
    return _translation(-0.5, -0.5) @ matrix @ _translation(0.5, 0.5)


def _translation(x: float, y: float) -> Affine:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _rotation(angle_rad: float) -> Affine:
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
