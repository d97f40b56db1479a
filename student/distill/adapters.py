"""What feature maps go through before they are compared, and what that does to channels and grid."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from student.distill.config import AdapterConfig


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """A map of features, (B, channels, H, W) over a grid."""

    channels: int
    grid: BevGrid


class Layered(nn.Sequential):
    """`depth` times convolution, batch norm and ReLU; the first convolution may stride, the others are 1x1."""

    def __init__(self, channels: int, out: int, depth: int, stride: int) -> None:
        widths = [channels] * depth + [out]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            size = stride if index == 0 else 1
            layers += [nn.Conv2d(before, after, size, size), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class CellConv(nn.Conv2d):
    """A 3 x 3 convolution of one channel, as nine shifted sums.

    Libraries' convolutions are made for many channels: here their backward pass takes seven times as long as this one.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)

    def forward(self, maps: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
        height, width = maps.shape[2:]
        padded = F.pad(maps, (1, 1, 1, 1))
        shifted = (padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))
        terms = (weight * part for weight, part in zip(self.weight.flatten(), shifted, strict=True))
        return sum(terms, start=self.get_parameter("bias"))


def _mlp(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, out, 1))


CHANNELS: dict[str, Callable[[int, int], nn.Module]] = {
    "1x1conv": lambda channels, out: nn.Conv2d(channels, out, 1),
    "3x3conv": lambda channels, out: nn.Conv2d(channels, out, 3, padding=1),
    "mlp": _mlp,
    "2layer": lambda channels, out: Layered(channels, out, depth=2, stride=1),
    "3layer": lambda channels, out: Layered(channels, out, depth=3, stride=1),
}
"""Adapters that change channels and keep the cells; all others keep the channels unless they end in one of these."""

RESIZING: dict[str, Callable[[int], nn.Module]] = {
    # Half-pixel centres: the fine map lies where the coarse one does in metres. (The public code aligns the corners.)
    "upsample": lambda factor: nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False),
    "avgpool": lambda factor: nn.AvgPool2d(factor),
    "maxpool": lambda factor: nn.MaxPool2d(factor),
}


def build_adapter(config: AdapterConfig, channels: int, out: int) -> nn.Module:
    """The module of a configuration, from `channels` to `out` (which only `changes_channels` kinds look at)."""
    resizing, _, tail = config.kind.partition("_")
    if resizing == "downsample":
        return Layered(channels, out, depth=int(tail[0]), stride=config.factor)
    if resizing in RESIZING:
        resize = RESIZING[resizing](config.factor)
        return nn.Sequential(resize, CHANNELS[tail](channels, out)) if tail else resize
    return CHANNELS[config.kind](channels, out) if config.kind in CHANNELS else nn.Identity()


def changes_channels(config: AdapterConfig) -> bool:
    """Whether the adapter can give another number of channels than it gets."""
    return config.kind.endswith(("conv", "layer", "mlp"))


def adapted_grid(config: AdapterConfig, grid: BevGrid, where: str) -> BevGrid:
    """The grid behind an adapter.

    Raises:
        MismatchError: the cells do not divide by the factor.
    """
    return _split(config, grid) if config.kind.startswith("upsample") else _merged(config, grid, where)


def grid_before(config: AdapterConfig, grid: BevGrid, where: str) -> BevGrid:
    """The grid in front of an adapter that leads to `grid`.

    Raises:
        MismatchError: the cells do not divide by the factor.
    """
    return _merged(config, grid, where) if config.kind.startswith("upsample") else _split(config, grid)


def _split(config: AdapterConfig, grid: BevGrid) -> BevGrid:
    height, width = grid.shape
    return grid.resized((height * config.factor, width * config.factor))


def _merged(config: AdapterConfig, grid: BevGrid, where: str) -> BevGrid:
    height, width = grid.shape
    if height % config.factor or width % config.factor:
        raise MismatchError(
            f"the adapter {config.kind!r} cannot merge the cells",
            where=where,
            got=f"{height} x {width} cells",
            expected=f"both divisible by the factor {config.factor}",
            cure="Choose a factor that divides both",
        )
    return grid.resized((height // config.factor, width // config.factor))
