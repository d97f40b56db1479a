import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from student.models.image_encoder import Fpn, ImageEncoder


def test_images_are_normalised_by_imagenet() -> None:
    encoder = ImageEncoder("resnet18", channels=8, stride=16)
    normalised: list[Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: normalised.append(inputs[0]))
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 64)
    assert encoder(images).shape == (1, 8, 2, 4)
    red, green, blue = normalised[0][0, :, 0, 0].tolist()
    assert red == pytest.approx((0 - 123.675) / 58.395)
    assert green == pytest.approx((128 - 116.28) / 57.12)
    assert blue == pytest.approx((255 - 103.53) / 57.375)


def test_the_pyramid_adds_the_coarse_map_to_the_fine_one() -> None:
    neck = Fpn((1, 1), 1)
    for conv, factor in ((neck.lateral_convs[0], 1.0), (neck.lateral_convs[1], 10.0)):
        torch.nn.init.constant_(conv.weight, factor)
    torch.nn.init.dirac_(neck.fpn_conv.weight)
    fine, coarse = torch.arange(8.0).view(1, 1, 2, 4), torch.tensor([[[[1.0, 2.0]]]])
    expected = [[0 + 10, 1 + 10, 2 + 20, 3 + 20], [4 + 10, 5 + 10, 6 + 20, 7 + 20]]
    assert neck([fine, coarse])[0, 0].tolist() == expected


def test_image_size_must_fit_the_stride() -> None:
    with pytest.raises(ConfigError, match=r"got 40 x 64; expected multiples of 16"):
        ImageEncoder("resnet18", channels=8, stride=16)(torch.zeros(1, 3, 40, 64, dtype=torch.uint8))
