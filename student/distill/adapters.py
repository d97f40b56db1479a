"""Adapters: layers that make two feature maps comparable, and the channels and grid behind them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from cache.config import Strict
from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from student.distill.parallel import single_threaded

Channels = Literal["identity", "1x1conv", "3x3conv", "mlp", "2layer", "3layer", "orthogonal"]
Resizing = Literal[
    "upsample",
    "upsample_1x1conv",
    "upsample_2layer",
    "upsample_3layer",
    "upsample_orthogonal",
    "downsample_2layer",
    "downsample_3layer",
    "avgpool",
    "avgpool_1x1conv",
    "avgpool_3layer",
    "maxpool",
    "maxpool_1x1conv",
]


class AdapterConfig(Strict):
    """Layers applied to a feature map before it is compared, named as in the public code; a bare string is a kind.

    `upsample*`, `downsample*` and the pools change the number of cells by `factor`.
    """

    kind: Channels | Resizing = "identity"
    factor: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _bare_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _factor_fits(self) -> "AdapterConfig":
        resizes = self.kind.startswith(("upsample", "downsample", "avgpool", "maxpool"))
        if resizes != (self.factor > 1):
            raise ConfigError(
                f"the adapter {self.kind!r} and its factor do not fit",
                got=self.factor,
                expected="2 or more" if resizes else "1: this adapter keeps the number of cells",
                cure="Set `factor`, or choose an upsample_*, downsample_*, avgpool or maxpool adapter",
            )
        return self


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """Channels and grid of a layer of feature maps (B, channels, H, W)."""

    channels: int
    grid: BevGrid


class Layered(nn.Sequential):
    """`depth` times convolution, batch norm and ReLU; kernel and stride are `stride` in the first, 1 in the others."""

    def __init__(self, channels: int, out: int, depth: int, stride: int) -> None:
        widths = [channels] * depth + [out]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            size = stride if index == 0 else 1
            layers += [nn.Conv2d(before, after, size, size), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class CellConv(nn.Conv2d):
    """A 3 x 3 convolution of one channel, as nine shifted sums on one core: a seventh of Conv2d's time."""

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)

    def forward(self, maps: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
        return _ShiftedSums.apply(maps, self.weight, self.get_parameter("bias"))


class _ShiftedSums(torch.autograd.Function):
    """A 3 x 3 convolution whose passes both run single-threaded: torch would start its threads for each of 60 sums."""

    @staticmethod
    @single_threaded()
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return _sum_shifted(maps, weight) + bias

    @staticmethod
    @once_differentiable
    @single_threaded()
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, weight = ctx.saved_tensors
        by_weight = torch.stack([(gradient * part).sum() for part in _shifted(maps)])
        return _sum_shifted(gradient, weight.flip(2, 3)), by_weight.view_as(weight), gradient.sum()[None]


def _sum_shifted(maps: Tensor, weight: Tensor) -> Tensor:
    first, *others = zip(weight.flatten(), _shifted(maps), strict=True)
    total = first[0] * first[1]
    for factor, part in others:
        total.addcmul_(factor, part)
    return total


def _shifted(maps: Tensor) -> Iterator[Tensor]:
    """The maps as seen from each of the 3 x 3 cells around a cell, row by row; 0 beyond the edge."""
    height, width = maps.shape[2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    return (padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))


class OrthogonalConv(nn.Module):
    """A 1 x 1 convolution with orthonormal rows or columns, then a learned scale and bias for each channel.

    The orthogonal alignment of DualDistill (Kim et al., BMVC 2025), without the attention before it: distances and
    angles between cells' features stay as they are, up to the scales.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.projection = orthogonal(nn.Linear(channels, out, bias=False))
        self.scale, self.bias = nn.Parameter(torch.ones(out)), nn.Parameter(torch.zeros(out))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ H W"]:
        weight = cast(Tensor, self.projection.weight) * self.scale[:, None]
        return F.conv2d(maps, weight[..., None, None], self.bias)


def _mlp(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, out, 1))


CHANNELS: dict[str, Callable[[int, int], nn.Module]] = {
    "1x1conv": lambda channels, out: nn.Conv2d(channels, out, 1),
    "3x3conv": lambda channels, out: nn.Conv2d(channels, out, 3, padding=1),
    "mlp": _mlp,
    "2layer": lambda channels, out: Layered(channels, out, depth=2, stride=1),
    "3layer": lambda channels, out: Layered(channels, out, depth=3, stride=1),
    "orthogonal": OrthogonalConv,
}
"""Adapters that change channels and keep the cells; the others keep the channels unless they end in one of these."""

RESIZING: dict[str, Callable[[int], nn.Module]] = {
    # Half-pixel centres keep features in place in metres. (The public code aligns the corners.)
    "upsample": lambda factor: nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False),
    "avgpool": lambda factor: nn.AvgPool2d(factor),
    "maxpool": lambda factor: nn.MaxPool2d(factor),
}


def build_adapter(config: AdapterConfig, channels: int, out: int) -> nn.Module:
    """The module of a configuration; `out` channels are for kinds that `changes_channels` is true of."""
    resizing, _, tail = config.kind.partition("_")
    if resizing == "downsample":
        return Layered(channels, out, depth=int(tail[0]), stride=config.factor)
    if resizing in RESIZING:
        resize = RESIZING[resizing](config.factor)
        return nn.Sequential(resize, CHANNELS[tail](channels, out)) if tail else resize
    return CHANNELS[config.kind](channels, out) if config.kind in CHANNELS else nn.Identity()


def changes_channels(config: AdapterConfig) -> bool:
    """Whether the adapter has a convolution that sets the number of channels."""
    return config.kind.endswith(("conv", "layer", "mlp", "orthogonal"))


def adapted_grid(config: AdapterConfig, grid: BevGrid, where: str, inverse: bool = False) -> BevGrid:
    """The grid of an adapter's output; with `inverse`, that of its input, for the output's `grid`.

    Raises:
        MismatchError: the cells do not divide by the factor.
    """
    height, width = grid.shape
    if config.kind.startswith("upsample") != inverse:
        return grid.resized((height * config.factor, width * config.factor))
    if height % config.factor or width % config.factor:
        raise MismatchError(
            f"the adapter {config.kind!r} cannot merge the cells",
            where=where,
            got=f"{height} x {width} cells",
            expected=f"both divisible by the factor {config.factor}",
            cure="Choose a factor that divides both",
        )
    return grid.resized((height // config.factor, width // config.factor))
