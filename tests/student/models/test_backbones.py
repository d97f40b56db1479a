import pytest
import torch

from cache.errors import ConfigError
from student.models.backbones import image_backbone, image_statistics


@pytest.mark.parametrize(("stride", "channels"), [(16, (256, 512)), (8, (128, 256, 512))])
def test_maps_start_at_the_stride(stride: int, channels: tuple[int, ...]) -> None:
    backbone = image_backbone("resnet18", finest_stride=stride)
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert backbone.channels == channels
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 64 // (stride * 2**k), 96 // (stride * 2**k)) for k, width in enumerate(channels)
    ]


@pytest.mark.parametrize(("name", "channels"), [("resnet50", (1024, 2048)), ("wide_resnet50_2", (1024, 2048))])
def test_any_torchvision_resnet_by_name(name: str, channels: tuple[int, ...]) -> None:
    assert image_backbone(name, finest_stride=16).channels == channels


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("convnext_tiny", (192, 384, 768)),
        ("efficientnet_b0", (40, 112, 1280)),
        ("efficientnet_v2_s", (64, 160, 1280)),
        ("mobilenet_v3_small", (24, 48, 576)),
        ("regnet_y_400mf", (104, 208, 440)),
        ("swin_t", (192, 384, 768)),
        ("swin_v2_t", (192, 384, 768)),
    ],
)
def test_other_families_show_their_strides_in_a_dry_run(name: str, channels: tuple[int, ...]) -> None:
    backbone = image_backbone(name, finest_stride=8)
    assert backbone.channels == channels and backbone.training
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    assert image_backbone(name, finest_stride=16).channels == channels[1:]


@pytest.mark.parametrize(
    "name", ["resnet152", "resnext101_64x4d", "wide_resnet101_2", "convnext_large", "efficientnet_b7", "swin_b"]
)
def test_large_ones_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        assert len(image_backbone(name, finest_stride=16).channels) == 2


def test_pixels_are_normalised_as_torchvision_trained_the_network() -> None:
    mean, std = image_statistics("resnet50")
    assert (mean, std) == (pytest.approx([123.675, 116.28, 103.53]), pytest.approx([58.395, 57.12, 57.375]))
    assert image_statistics("efficientnet_v2_l") == ([127.5] * 3, [127.5] * 3)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown image backbone .*got resnet51; expected one of .*resnet50"):
        image_backbone("resnet51", finest_stride=16)
    with pytest.raises(ConfigError, match=r"got vit_b_16; expected one of .*swin_t.* other families have no maps"):
        image_backbone("vit_b_16", finest_stride=16)
