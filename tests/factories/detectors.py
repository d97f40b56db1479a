"""Detectors of a few cells, and batches of random images for them."""

import numpy as np
import torch

from cache.geometry.grid import BevGrid
from student.config.student import DetectorConfig, HeadConfig
from student.data.batch import Batch

NAMES = ("bevdet", "bevdet4d", "bevdepth", "bevdepth4d")


def small(name: str = "bevdepth", **changes: object) -> DetectorConfig:
    """32 x 16 cells of 0.8 m, 64 x 96 images, 11 depth bins."""
    config = DetectorConfig(
        name=name,
        image_backbone="resnet18",
        image_neck_channels=16,
        depth_m=(1.0, 12.0, 1.0),
        grid=BevGrid(x_range_m=(-6.4, 6.4), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8)),
        lift_channels=8,
        bev_channels=(8, 16, 32),
        bev_neck_channels=16,
        head=HeadConfig(shared_channels=16),
    )
    return config.model_copy(update=changes)


def batch_of(times: int = 1, samples: int = 2, seed: int = 0) -> Batch:
    """Six cameras all around, random images, two boxes in each sample."""
    g = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(6, 1, 1)
    for index, angle in enumerate(np.arange(6) * np.pi / 3):
        forward = [np.cos(angle), np.sin(angle), 0]
        right = [np.sin(angle), -np.cos(angle), 0]
        poses[index, :3, :3] = torch.tensor(np.array([right, [0, 0, -1], forward]).T)
        poses[index, :3, 3] = torch.tensor([0.13 + 0.37 * index, 0.11 - 0.2 * index, 0.0])
    views = (samples, times, 6)
    boxes = torch.tensor([[2.0, 5, -1, 4, 2, 1.5, 0.3, 1, 0], [-3, -4, -1, 1, 1, 2, 1.3, 0, 0]])
    return Batch(
        tokens=tuple(f"token {index}" for index in range(samples)),
        images=torch.randint(0, 256, (*views, 3, 64, 96), generator=g, dtype=torch.uint8),
        intrinsics=torch.tensor([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]]).repeat(*views, 1, 1),
        image_matrix=torch.eye(3).repeat(*views, 1, 1),
        camera_to_lidar=poses.repeat(samples, times, 1, 1, 1),
        to_current=torch.eye(4).repeat(samples, times, 1, 1),
        lidar_to_ego=torch.eye(4).repeat(samples, 1, 1),
        bev_matrix=torch.eye(4).repeat(samples, 1, 1),
        depth_m=torch.rand(samples, 6, 4, 6, generator=g) * 12,
        boxes=(boxes,) * samples,
        labels=(torch.tensor([0, 8]),) * samples,
    )
