"""Depth nets: a distribution over depth bins and a context for each image feature; and the depth loss."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, DeformConv2d


class DepthNet(nn.Module):
    """Camera-aware depth and context (BEVDepth, figure 4): D logits, then the context's channels.

    Tensors are those of the public BEVDet code's DepthNet without deformable convolution.
    """

    def __init__(self, channels: int, bins: int, context_channels: int, camera_channels: int = 27) -> None:
        super().__init__()
        self.reduce_conv = Conv2dNormActivation(channels, channels, 3, bias=True)
        self.bn = nn.BatchNorm1d(camera_channels)
        self.context_mlp = _mlp(camera_channels, channels)
        self.context_se = SqueezeExcite(channels)
        self.context_conv = nn.Conv2d(channels, context_channels, 1)
        self.depth_mlp = _mlp(camera_channels, channels)
        self.depth_se = SqueezeExcite(channels)
        self.depth_conv = nn.Sequential(
            *(BasicBlock(channels, channels) for _ in range(3)), Aspp(channels), nn.Conv2d(channels, bins, 1)
        )

    def forward(self, x: Float[Tensor, "n c h w"], parameters: Float[Tensor, "n p"]) -> Float[Tensor, "n _ h w"]:
        parameters = self.bn(parameters)
        x = self.reduce_conv(x)
        context = self.context_conv(self.context_se(x, self.context_mlp(parameters)))
        depth = self.depth_conv(self.depth_se(x, self.depth_mlp(parameters)))
        return torch.cat([depth, context], dim=1)


class PlainDepthNet(nn.Module):
    """BEVDet's depth net: a 1 x 1 convolution; the camera parameters are not used."""

    def __init__(self, channels: int, bins: int, context_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, bins + context_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], parameters: Float[Tensor, "n p"]) -> Float[Tensor, "n _ h w"]:
        return self.conv(x)


class DeformableDepthNet(nn.Module):
    """Camera-aware depth through a gate, context without: BEVDepth in BEVDet 0.x and DistillBEV (`depth_net: dcn`)."""

    def __init__(
        self, channels: int, bins: int, context_channels: int, depth_channels: int, camera_channels: int = 33
    ) -> None:
        super().__init__()
        inner = depth_channels
        self.input_conv = nn.Conv2d(channels, inner, 1)
        self.gate = nn.Sequential(nn.BatchNorm1d(camera_channels), nn.Linear(camera_channels, inner), nn.Sigmoid())
        self.blocks = nn.Sequential(
            BasicBlock(inner, inner, downsample=nn.Conv2d(inner, inner, 3, padding=1)),
            BasicBlock(inner, inner),
            BasicBlock(inner, inner),
        )
        self.deform, self.deform_bn = DeformableConv(inner), nn.BatchNorm2d(inner)
        self.depth_conv = nn.Conv2d(inner, bins, 1)
        self.context_conv = nn.Conv2d(channels, context_channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], parameters: Float[Tensor, "n p"]) -> Float[Tensor, "n _ h w"]:
        depth = self.blocks(self.input_conv(x) * self.gate(parameters)[..., None, None])
        depth = self.depth_conv(self.deform_bn(self.deform(depth)))
        return torch.cat([depth, self.context_conv(x)], dim=1)


class DeformableConv(nn.Module):
    """Modulated deformable 3 x 3 convolution (Zhu et al. 2019, equation 1); initially half a plain one.

    The offsets' channels are (y, x) for each of the 9 taps, then come their masks: mmcv's layout is torchvision's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 3 * 9, 3, padding=1)
        self.conv = DeformConv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.get_parameter("bias"))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        with torch.autocast(x.device.type, enabled=False):
            offsets, masks = self.offset(x.float()).split([18, 9], dim=1)
            return self.conv(x.float(), offsets, masks.sigmoid())


def _mlp(in_channels: int, channels: int) -> nn.Sequential:
    """Two linear layers with a ReLU between, named as in the public code."""
    fc1, fc2 = nn.Linear(in_channels, channels), nn.Linear(channels, channels)
    return nn.Sequential(OrderedDict(fc1=fc1, relu=nn.ReLU(), fc2=fc2))


class SqueezeExcite(nn.Module):
    """Gate the channels of a map by a vector (Hu et al. 2018, with the camera in place of the map's mean)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], gate: Float[Tensor, "n c"]) -> Float[Tensor, "n c h w"]:
        return x * self.conv_expand(F.relu(self.conv_reduce(gate[..., None, None]))).sigmoid()


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3): four dilations and the mean of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp1 = _atrous_conv(channels, kernel=1, dilation=1)
        self.aspp2, self.aspp3, self.aspp4 = (_atrous_conv(channels, kernel=3, dilation=d) for d in (6, 12, 18))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *Conv2dNormActivation(channels, channels, 1, inplace=False)
        )
        self.conv1, self.bn1 = nn.Conv2d(5 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), self.global_avg_pool(x).expand_as(x)]
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


def _atrous_conv(channels: int, kernel: int, dilation: int) -> nn.Sequential:
    """Convolution with a dilation, batch norm and ReLU, named as in the public code."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(OrderedDict(atrous_conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU()))


def depth_loss(
    logits: Float[Tensor, "B N D h w"], depth_m: Float[Tensor, "B N h w"], bins_m: tuple[float, float, float]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the bins' probabilities against the bin of the LiDAR depth (BEVDepth, equation 3).

    Summed over bins, averaged over the patches whose depth lies in a bin (0 marks patches without a point); 0 if
    there is none.
    """
    nearest, _, size = bins_m
    bins = logits.shape[2]
    target = ((depth_m - nearest) / size).floor().long()
    known = (depth_m > 0) & (target >= 0) & (target < bins)
    with torch.autocast(logits.device.type, enabled=False):
        values = logits.float().movedim(2, -1)
        if values.is_cpu:  # a device would be waited for, to learn how many patches are known
            values, target, known = values[known], target[known], known[known]
        return entropy_of_known(values, target, known)


def entropy_of_known(
    logits: Float[Tensor, "*n D"], target: Int[Tensor, "*n"], known: Bool[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """The mean of `depth_loss` over the known patches, whatever the others hold."""
    probability = logits.softmax(dim=-1)
    one_hot = torch.arange(logits.shape[-1], device=logits.device) == target[..., None]
    # binary_cross_entropy raises for NaN, and on a GPU takes the device with it.
    broken = probability.isnan()
    entropy = F.binary_cross_entropy(probability.masked_fill(broken, 0.5), one_hot.float(), reduction="none")
    total = torch.where(known[..., None], entropy, 0.0).sum()
    return torch.where((broken & known[..., None]).any(), torch.nan, total / known.sum().clamp(min=1))
