"""The BEV map after the lift: its alignment in time, and its encoder."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from cache.geometry.grid import BevGrid
from student.models.lift_splat import cell_matrix


class BevResNet(nn.Module):
    """Residual stages of two basic blocks each (the public CustomResNet); gives every stage's map."""

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
    """The first and the last map of three stages of stride 2, back to the grid's H x W (FPN_LSS of BEVDet)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(*_conv_bn_relu(in_channels, wide), *_conv_bn_relu(wide, wide))
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *_conv_bn_relu(wide, channels),
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
    """A map of an earlier time as the current frame's grid sees it, by ego motion (BEVDet4D, section 3.2).

    Each current cell's centre goes to the earlier frame, through bev_matrix @ to_current^-1 @ bev_matrix^-1 at z = 0,
    and takes the bilinear value there; 0 outside the earlier map.

    Args:
        to_current: LiDAR of the earlier time -> LiDAR of the current frame.
        bev_matrix: LiDAR -> augmented BEV, the same for both times.
    """
    height, width = grid.shape
    with torch.autocast(previous.device.type, enabled=False):
        to_previous = bev_matrix @ torch.linalg.inv(bev_matrix @ to_current)
        ground = to_previous[:, [0, 1, 3]][:, :, [0, 1, 3]]
        # grid_sample's coordinates: -1 and 1 are the outer edges of the first and the last cell.
        to_unit = torch.diag(ground.new_tensor([2 / width, 2 / height, 1]))
        to_unit[:2, 2] = -1
        from_metres = to_unit @ cell_matrix(grid, ground)
        theta = (from_metres @ ground @ torch.linalg.inv(from_metres))[:, :2]
        where = F.affine_grid(theta, list(previous.shape), align_corners=False)
        return F.grid_sample(previous.to(where.dtype), where, align_corners=False)


def _conv_bn_relu(in_channels: int, channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
