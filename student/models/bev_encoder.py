"""The BEV encoder: residual backbone, neck, and temporal alignment of earlier maps."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from cache.geometry.grid import BevGrid
from student.distill.device import inverse, on_device
from student.models.lift_splat import cell_matrix


class BevResNet(nn.Module):
    """Residual stages of two basic blocks each (the public CustomResNet); returns every stage's map."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        before = (in_channels, *channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                BasicBlock(inner, outer, stride, downsample=nn.Conv2d(inner, outer, 3, stride, padding=1)),
                BasicBlock(outer, outer),
            )
            for inner, outer, stride in zip(before, channels, strides, strict=False)
        )

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> list[Float[Tensor, "B _ _ _"]]:
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        return maps


class FpnLss(nn.Module):
    """Fuse the first and the last map of three stages of stride 2 at the grid's H x W (FPN_LSS of BEVDet)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(*Conv2dNormActivation(in_channels, wide), *Conv2dNormActivation(wide, wide))
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *Conv2dNormActivation(wide, channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B C H W"]:
        return self.up2(self.conv(torch.cat([maps[0], self.up(maps[-1])], dim=1)))


def align(
    previous: Float[Tensor, "B C H W"],
    grid: BevGrid,
    to_current: Float[Tensor, "B 4 4"],
    bev_matrix: Float[Tensor, "B 4 4"],
) -> Float[Tensor, "B C H W"]:
    """Warp the BEV map of an earlier time to the current frame by ego motion (BEVDet4D, section 3.2).

    Each cell's centre is mapped to the earlier frame by bev_matrix @ to_current^-1 @ bev_matrix^-1 at z = 0, where the
    map is sampled bilinearly; 0 outside the earlier map.

    Args:
        to_current: LiDAR of the earlier time -> LiDAR of the current frame.
        bev_matrix: LiDAR -> augmented BEV, the same for both times.
    """
    height, width = grid.shape
    with torch.autocast(previous.device.type, enabled=False):
        to_previous = bev_matrix @ inverse(bev_matrix @ to_current)
        rows = torch.cat([to_previous[:, :2], to_previous[:, 3:]], dim=1)
        planar = torch.cat([rows[:, :, :2], rows[:, :, 3:]], dim=2)
        # grid_sample's coordinates: -1 and 1 are the outer edges of the first and the last cell.
        to_unit = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
        from_metres = to_unit @ cell_matrix(grid, to_unit)
        there, back = (on_device(matrix, planar) for matrix in (from_metres, torch.linalg.inv(from_metres)))
        theta = (there @ planar @ back)[:, :2]
        sampling_grid = F.affine_grid(theta, list(previous.shape), align_corners=False)
        return F.grid_sample(previous.to(sampling_grid.dtype), sampling_grid, align_corners=False)
