"""Lift-splat and voxel pooling: image features -> a map of the BEV grid (Philion and Fidler 2020).

Geometry runs in float32 also under autocast: a bfloat16 matrix would move points by metres.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cache.geometry.grid import BevGrid
from student.config.student import DetectorConfig
from student.distill.device import inverse, on_device


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """B samples of N cameras at one time; the fields are those of `Batch`."""

    intrinsics: Float[Tensor, "B N 3 3"]
    image_matrix: Float[Tensor, "B N 3 3"]
    camera_to_lidar: Float[Tensor, "B N 4 4"]
    bev_matrix: Float[Tensor, "B 4 4"]

    def parameters(self) -> Float[Tensor, "B N 27"]:
        """Input of the camera-aware depth net (BEVDepth, section 3.3), in the public code's order.

        fx, fy, cx, cy; the 2 x 3 image augmentation; the BEV augmentation's 2 x 2 part and its z scale; the 3 x 4
        camera pose.
        """
        bev = self.bev_matrix[:, None].expand(-1, self.intrinsics.shape[1], -1, -1)
        return torch.cat(
            [
                self.intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1),
                self.intrinsics[..., :2, 2],
                self.image_matrix[..., :2, :].flatten(-2),
                bev[..., :2, :2].flatten(-2),
                bev[..., 2, 2:3],
                self.camera_to_lidar[..., :3, :].flatten(-2),
            ],
            dim=-1,
        )

    def matrices(self) -> Float[Tensor, "B N 33"]:
        """Input of the depth net "dcn", in the order of BEVDet 0.x.

        The 3 x 3 intrinsics; the image augmentation's 3 x 3 part and its shift; the camera's pose in the augmented BEV
        frame as rotation and shift.
        """
        linear = self.image_matrix.clone()
        linear[..., :2, 2] = 0
        shift = self.image_matrix[..., 2] - linear[..., 2]
        pose = self.bev_matrix[:, None] @ self.camera_to_lidar
        parts = (self.intrinsics, linear, shift, pose[..., :3, :3], pose[..., :3, 3])
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], dim=-1)


class LiftSplat(nn.Module):
    """Sum image features, weighted by their depth distributions, into the cells of the BEV grid."""

    def __init__(self, config: DetectorConfig, depth_net: nn.Module) -> None:
        super().__init__()
        self.config, self.depth_net = config, depth_net

    def forward(
        self, features: Float[Tensor, "B N c h w"], cameras: Cameras
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B N D h w"]]:
        """The BEV map and the logits of the depth bins."""
        size = features.shape[-2:]
        parameters = cameras.matrices() if self.config.depth_net == "dcn" else cameras.parameters()
        maps = self.depth_net(features.flatten(0, 1), parameters.flatten(0, 1)).unflatten(0, features.shape[:2])
        logits, context = maps.tensor_split([self.config.depth_bins], dim=2)
        image_size = tuple(side * self.config.image_stride for side in size)
        points_m = frustum_points(cameras, image_size, tuple(size), self.config.bin_depths_m)
        cells, valid = cells_of_points(points_m, self.config.grid, self.config.z_range_m)
        # (B, N, D, h, w) -> (B, N, h, w, D): the bins of a pixel lie side by side, as in `cells`.
        probability = logits.float().softmax(dim=2).permute(0, 1, 3, 4, 2)
        bev = pool(context.float().permute(0, 1, 3, 4, 2), probability, cells, valid, self.config.grid.shape)
        return bev, logits


def frustum_points(
    cameras: Cameras, image_size: tuple[int, ...], map_size: tuple[int, ...], depths_m: tuple[float, ...]
) -> Float[Tensor, "B N h w D 3"]:
    """Coordinates of each (pixel, depth bin) in the augmented BEV frame, in metres.

    As in the public code, the map's pixels span the image from its first to its last pixel, and a bin's depth is that
    of its near edge. The image augmentation is undone first; it must be affine.
    """
    like = cameras.intrinsics
    rows, columns = (
        torch.linspace(0, size - 1, cells, device=like.device, dtype=like.dtype)
        for size, cells in zip(image_size, map_size, strict=True)
    )
    depths = on_device(depths_m, like)
    with torch.autocast(like.device.type, enabled=False):
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
        to_bev = cameras.bev_matrix[:, None] @ cameras.camera_to_lidar
        to_ray = to_bev[..., :3, :3] @ inverse(cameras.image_matrix @ cameras.intrinsics)
        rays = torch.einsum("bnij,hwj->bnhwi", to_ray, pixels)
        return rays[..., None, :] * depths[:, None] + to_bev[:, :, None, None, None, :3, 3]


def cells_of_points(
    points_m: Float[Tensor, "*n 3"], grid: BevGrid, z_range_m: tuple[float, float]
) -> tuple[Int[Tensor, "*n"], Bool[Tensor, "*n"]]:
    """Row-major cell index of each point, and the valid mask: points within the grid and the height range."""
    matrix = cell_matrix(grid, points_m)
    column, row = (points_m[..., :2] * matrix.diagonal()[:2] + matrix[:2, 2]).floor().unbind(dim=-1)
    height, width = grid.shape
    valid = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    valid &= (points_m[..., 2] >= z_range_m[0]) & (points_m[..., 2] < z_range_m[1])
    return (row * width + column).long(), valid


def cell_matrix(grid: BevGrid, like: Tensor) -> Float[Tensor, "3 3"]:
    """Metres (x, y, 1) -> continuous cell coordinates (column, row, 1), on device and in type of `like` (any shape)."""
    return on_device(grid.cell_matrix, like)


def pool(
    context: Float[Tensor, "B N h w C"],
    probability: Float[Tensor, "B N h w D"],
    cells: Int[Tensor, "B N h w D"],
    valid: Bool[Tensor, "B N h w D"],
    shape: tuple[int, int],
) -> Float[Tensor, "B C H W"]:
    """Sum probability * context over the (pixel, bin) pairs in each cell: the splat of lift-splat.

    Each cell is an embedding bag of pixels, weighted by the probabilities: no B * N * D * h * w * C frustum is built.
    Pairs outside the grid sort into one more bag: leaving them out would wait for a device to count them.
    """
    samples, bins, (height, width) = len(context), probability.shape[-1], shape
    outside = samples * height * width
    first_cell = torch.arange(samples, device=cells.device).view(-1, 1, 1, 1, 1) * (height * width)
    bags, entries = torch.where(valid, cells + first_cell, outside).flatten().sort()
    starts = torch.searchsorted(bags, torch.arange(outside + 1, device=bags.device))
    if entries.is_cpu:
        entries = entries[: int(starts[-1])]
    bev = F.embedding_bag(
        entries // bins,
        context.reshape(-1, context.shape[-1]),
        starts,
        mode="sum",
        per_sample_weights=probability.reshape(-1).index_select(0, entries),
    )
    return bev[:outside].unflatten(0, (samples, height, width)).permute(0, 3, 1, 2)
