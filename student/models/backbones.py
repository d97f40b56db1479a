"""torchvision image backbones and their neck: six camera images -> one feature map each."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.resnet import ResNet as TorchvisionResNet

from cache.errors import ConfigError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Of RGB values 0 .. 255."""

RESNETS = ("resnet*", "resnext*", "wide_resnet*")
CHAINS = ("convnext_*", "efficientnet_*", "mobilenet_*", "regnet_*", "swin_*")
"""Families of torchvision's networks; those of CHAINS are one block after the other."""

CLASSIFIERS = ("fc.", "classifier.", "norm.", "head.")
"""Where the tensors of what follows the last map begin; they are neither needed nor used."""


class ImageEncoder(nn.Module):
    """uint8 images to one map: normalisation, backbone and neck (`img_backbone` and `img_neck` of the public code).

    Args:
        name: a torchvision network of RESNETS or CHAINS ("resnet50", "convnext_tiny", "swin_t", ...).
        weights: a file with a torchvision state dict of that network; random weights without it.
        channels: of the map that comes out.
        stride: input pixels for each cell of that map.

    Raises:
        ConfigError: it is no such network, or the weights cannot be read or do not fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: Path | None, channels: int, stride: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.backbone = image_backbone(name, weights, finest_stride=stride)
        self.neck = Fpn(self.backbone.channels, channels)
        self.stride = stride

    def forward(self, images: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ConfigError(
                "the image size does not fit the image stride",
                where="image.size",
                got=f"{height} x {width}",
                expected=f"multiples of {self.stride}",
                cure="Change the image size",
            )
        return self.neck(self.backbone((images - self.mean) / self.std))


def image_backbone(name: str, weights: Path | None, finest_stride: int) -> "ResNet | Chain":
    """A torchvision network without its classifier; gives its maps of stride `finest_stride`, ..., 32, finest first.

    Args:
        weights: a file with its torchvision state dict; random weights without it.

    Raises:
        ConfigError: it is no network of RESNETS or CHAINS, or the weights cannot be read or do not fit it.
    """
    known = torchvision.models.list_models(module=torchvision.models, include=[*RESNETS, *CHAINS])
    if name not in known:
        raise ConfigError(
            "unknown image backbone",
            where="detector.image_backbone",
            got=name,
            expected=f"one of {', '.join(known)}",
            cure="Choose one of them: networks of other families have no maps of stride 8, 16 and 32",
        )
    network = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        _load_weights(network, weights, name)
    if any(fnmatchcase(name, family) for family in RESNETS):
        return ResNet(cast(TorchvisionResNet, network), finest_stride)
    return Chain(network, finest_stride, channels_last=name.startswith("swin_"))


class ResNet(nn.Module):
    """The ResNet, ResNeXt or wide ResNet."""

    def __init__(self, network: TorchvisionResNet, finest_stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(network)
        # Stage k has a stride of 4 * 2^k.
        self.first_output = {4: 0, 8: 1, 16: 2, 32: 3}[finest_stride]
        widths = [network.fc.in_features // 2**k for k in (3, 2, 1, 0)]
        self.channels = tuple(widths[self.first_output :])

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> list[Float[Tensor, "n _ _ _"]]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in _stages(self):
            x = stage(x)
            maps.append(x)
        return maps[self.first_output :]


class Chain(nn.Module):
    """A network of blocks one after the other; a dry run shows each block's stride and channels.

    Args:
        channels_last: its blocks give (n, h, w, c).
    """

    def __init__(self, network: nn.Module, finest_stride: int, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        for part in ("features", "stem", "trunk_output"):  # the last two are RegNet's
            if hasattr(network, part):
                self.add_module(part, getattr(network, part))
        side = 64
        with torch.no_grad():
            maps = list(self.eval()._maps(torch.zeros(1, 3, side, side)))
        self.train()
        # The last block of a stride speaks for it.
        last = {side // found.shape[-1]: block for block, found in enumerate(maps)}
        self.outputs = tuple(last[stride] for stride in (8, 16, 32) if stride >= finest_stride)
        self.channels = tuple(maps[block].shape[1] for block in self.outputs)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> list[Float[Tensor, "n _ _ _"]]:
        return [found for block, found in enumerate(self._maps(x)) if block in self.outputs]

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        """Every block's map, as (n, c, h, w)."""
        for part in self.children():
            for block in (part,) if part is self._modules.get("stem") else part.children():
                x = block(x)
                yield x.movedim(-1, 1) if self.channels_last else x


class Fpn(nn.Module):
    """Feature pyramid (Lin et al. 2017) of which only the finest map comes out; BEVDet's CustomFPN."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (*self.lateral_convs, self.fpn_conv):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: list[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        *finer, top = (conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True))
        for lateral in reversed(finer):
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        return self.fpn_conv(top)


def _stages(network: "TorchvisionResNet | ResNet") -> tuple[nn.Module, ...]:
    return network.layer1, network.layer2, network.layer3, network.layer4


def _load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Load a torchvision state dict, all of it but the classifier."""
    state = {key: value for key, value in _read_state_dict(path).items() if not key.startswith(CLASSIFIERS)}
    # Files from before 2018 have no such counters, and nothing here reads them.
    counters = "num_batches_tracked"
    own = {key: value for key, value in network.state_dict().items() if not key.startswith(CLASSIFIERS)}
    problems = [f"no {key}" for key in own if key not in state and not key.endswith(counters)]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise ConfigError(
            "the weights do not fit the image backbone",
            where=path,
            got=f"{'; '.join(problems[:3])}{'; ...' if len(problems) > 3 else ''} ({len(problems)} keys)",
            expected=f"a state dict of torchvision's {name}",
            cure="Change detector.image_backbone or detector.image_weights",
        )
    network.load_state_dict(state, strict=False)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    problem: object = "something else"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
            return state
    except FileNotFoundError:
        problem = "no such file"
    except (
        Exception
    ) as error:  # A damaged file breaks torch.load in many ways: EOFError, RuntimeError, pickle's errors.
        problem = next(iter(str(error).splitlines()), type(error).__name__)
    raise ConfigError(
        "the image backbone's weights cannot be read",
        where=path,
        got=problem,
        expected="a state dict as torch.save writes it",
        cure="Change detector.image_weights",
    )
