"""torchvision networks as image backbones: maps of stride 8, 16 and 32, weights from torchvision's state dicts."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from cache.errors import ConfigError
from cache.teacher.checkpoint import read_checkpoint
from cache.teacher.state_dict import match_state_dict

RESNETS = ("resnet*", "resnext*", "wide_resnet*")
SEQUENTIAL = ("convnext_*", "efficientnet_*", "mobilenet_*", "regnet_*", "swin_*")
"""Families of torchvision's networks; those of SEQUENTIAL run their blocks one after the other."""

CLASSIFIERS = ("fc.", "classifier.", "norm.", "head.")
"""Prefixes of the tensors after the last map, which are neither needed nor used."""


def image_backbone(name: str, weights: Path | None, finest_stride: int) -> "ResNetBackbone | SequentialBackbone":
    """A torchvision network without its classifier; returns its maps of stride `finest_stride`, ..., 32, finest first.

    Args:
        weights: a file with its torchvision state dict; random weights without it.

    Raises:
        ConfigError: it is no network of RESNETS or SEQUENTIAL, or the weights cannot be read or do not fit it.
    """
    known = torchvision.models.list_models(module=torchvision.models, include=[*RESNETS, *SEQUENTIAL])
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
        return ResNetBackbone(cast(ResNet, network), finest_stride)
    return SequentialBackbone(network, finest_stride, channels_last=name.startswith("swin_"))


class ResNetBackbone(nn.Module):
    """ResNet, ResNeXt or wide ResNet."""

    def __init__(self, network: ResNet, finest_stride: int) -> None:
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


class SequentialBackbone(nn.Module):
    """A network whose blocks run one after the other; a dry run finds each block's stride and channels.

    Args:
        channels_last: the blocks return (n, h, w, c).
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
        # Of each stride, the last block.
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


def _stages(network: "ResNet | ResNetBackbone") -> tuple[nn.Module, ...]:
    return network.layer1, network.layer2, network.layer3, network.layer4


def _load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Load a torchvision state dict, all of it but the classifier."""
    try:
        weights = read_checkpoint(path, ConfigError).weights
    except ConfigError as error:
        raise ConfigError(
            "the image backbone's weights cannot be read",
            where=path,
            got=error.got,
            expected="a state dict as torch.save writes it",
            cure="Change detector.image_weights",
        ) from error
    state, own = (
        {key: value for key, value in tensors.items() if not key.startswith(CLASSIFIERS)}
        for tensors in (weights, network.state_dict())
    )
    if match := match_state_dict(state, own):
        raise ConfigError(
            "the weights do not fit the image backbone",
            where=path,
            got=match,
            expected=f"a state dict of torchvision's {name}",
            cure="Change detector.image_backbone or detector.image_weights",
        )
    network.load_state_dict(state, strict=False)
