"""torchvision networks as image backbones: maps of stride 8, 16 and 32."""

from collections.abc import Iterator

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from cache.errors import ConfigError

FAMILIES = (
    *("resnet*", "resnext*", "wide_resnet*"),
    *("convnext_*", "efficientnet_*", "mobilenet_*", "regnet_*", "swin_*"),
)
"""torchvision's networks whose blocks run one after the other."""

STEMS = ("conv1", "bn1", "relu", "maxpool", "stem")
STAGES = ("layer1", "layer2", "layer3", "layer4", "features", "trunk_output")
"""Their parts before the classifier; STAGES are sequences of blocks."""

CLASSIFIERS = ("fc.", "classifier.", "norm.", "head.")
"""Prefixes of the tensors after the last map, which are neither needed nor used."""


def image_backbone(name: str, finest_stride: int) -> "Backbone":
    """A torchvision network of random weights and without its classifier, with maps of stride `finest_stride` .. 32.

    Raises:
        ConfigError: it is no network of FAMILIES.
    """
    known = torchvision.models.list_models(module=torchvision.models, include=list(FAMILIES))
    if name not in known:
        raise ConfigError(
            "unknown image backbone",
            where="detector.image_backbone",
            got=name,
            expected=f"one of {', '.join(known)}",
            cure="Choose one of them: networks of other families have no maps of stride 8, 16 and 32",
        )
    network = torchvision.models.get_model(name, weights=None)
    return Backbone(network, finest_stride, channels_last=name.startswith("swin_"))


def image_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB values 0 .. 255 that torchvision trained a network with."""
    trained = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return [255 * value for value in trained.mean], [255 * value for value in trained.std]


class Backbone(nn.Module):
    """A torchvision network up to its last map; a dry run finds the stride and the channels of each block.

    Args:
        channels_last: the blocks return (n, h, w, c).
    """

    def __init__(self, network: nn.Module, finest_stride: int, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        for name, part in network.named_children():
            if name in (*STEMS, *STAGES):
                self.add_module(name, part)
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

    def stage_blocks(self) -> Iterator[nn.Module]:
        """The blocks after the stem."""
        for name, part in self.named_children():
            if name in STAGES:
                yield from part.children()

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        """Every block's map, as (n, c, h, w)."""
        for name, part in self.named_children():
            for block in part.children() if name in STAGES else (part,):
                x = block(x)
                yield x.movedim(-1, 1) if self.channels_last else x
