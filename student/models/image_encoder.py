"""The image encoder: normalisation, backbone and feature pyramid; camera images -> one feature map each."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cache.errors import ConfigError
from student.models.backbones import image_backbone, image_statistics


class ImageEncoder(nn.Module):
    """Normalisation, backbone and neck (`img_backbone` and `img_neck` of the public code).

    Args:
        name: a torchvision network ("resnet50", "convnext_tiny", "swin_t", ...), see `image_backbone`.
        channels: of the output.
        stride: input pixels for each cell of the output.

    Raises:
        ConfigError: the network is unknown.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        self.backbone = image_backbone(name, finest_stride=stride)
        for buffer, values in zip(("mean", "std"), image_statistics(name), strict=True):
            self.register_buffer(buffer, torch.tensor(values).view(3, 1, 1), persistent=False)
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


class Fpn(nn.Module):
    """Feature pyramid (Lin et al. 2017) that returns its finest map only; BEVDet's CustomFPN."""

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
