"""Poses and boxes as nuScenes writes them -> matrices, and boxes in a LiDAR's frame."""

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "4 4"]


def rotation_matrices(quaternions: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3 3"]:
    """Of quaternions w, x, y, z; the same steps as pyquaternion's, and the same digits."""
    squares = np.matmul(quaternions[:, None, :], quaternions[:, :, None])[:, 0]
    scales = np.where((np.abs(1.0 - squares) < 1e-14) | (squares == 0), 1.0, np.sqrt(squares))
    w, x, y, z = (quaternions / scales).T
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    product = np.ascontiguousarray(left.transpose(2, 0, 1)) @ np.ascontiguousarray(right.transpose(2, 0, 1)).transpose(
        0, 2, 1
    )
    return product[:, 1:, 1:]


def pose_matrices(poses: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 4 4"]:
    """Of x, y, z in metres and a quaternion w, x, y, z."""
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = rotation_matrices(poses[:, 3:])
    matrices[:, :3, 3] = poses[:, :3]
    return matrices


def boxes_in_lidar(
    centers: Float[np.ndarray, "M 3"],
    sizes: Float[np.ndarray, "M 3"],
    rotations: Float[np.ndarray, "M 4"],
    velocities: Float[np.ndarray, "M 3"],
    global_to_lidar: Matrix,
) -> Float[np.ndarray, "M 9"]:
    """Boxes as nuScenes writes them in x, y, z (bottom), dx, dy, dz, yaw_rad, vx, vy in the LiDAR frame.

    Args:
        sizes: width, length, height.
        rotations: quaternions w, x, y, z.
    """
    rotation = global_to_lidar[:3, :3]
    # A product for each vector: one product of all rounds otherwise than mmdet3d and the devkit do.
    x, y, z = ((rotation @ centers[:, :, None])[:, :, 0] + global_to_lidar[:3, 3]).T
    heading = (rotation @ rotation_matrices(rotations)[:, :, :1])[:, :, 0]
    moving = (rotation @ velocities[:, :, None])[:, :, 0]
    width, length, height = sizes.T
    yaw_rad = np.arctan2(heading[:, 1], heading[:, 0])
    return np.stack([x, y, z - height / 2, length, width, height, yaw_rad, moving[:, 0], moving[:, 1]], axis=1)
