from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from cache.errors import ConfigError
from student.models.backbones import image_backbone

State = dict[str, Tensor]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize(("stride", "channels"), [(16, (256, 512)), (8, (128, 256, 512))])
def test_maps_start_at_the_stride(stride: int, channels: tuple[int, ...]) -> None:
    backbone = image_backbone("resnet18", None, finest_stride=stride)
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert backbone.channels == channels
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 64 // (stride * 2**k), 96 // (stride * 2**k)) for k, width in enumerate(channels)
    ]


@pytest.mark.parametrize(("name", "channels"), [("resnet50", (1024, 2048)), ("wide_resnet50_2", (1024, 2048))])
def test_any_torchvision_resnet_by_name(name: str, channels: tuple[int, ...]) -> None:
    assert image_backbone(name, None, finest_stride=16).channels == channels


def test_a_trunk_computes_what_torchvision_computes(weights: Path) -> None:
    ours = image_backbone("resnet18", weights, finest_stride=16).eval()
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    theirs.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = theirs.fc(ours(x)[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(theirs(x), expected)


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
    backbone = image_backbone(name, None, finest_stride=8)
    assert backbone.channels == channels and backbone.training
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    assert image_backbone(name, None, finest_stride=16).channels == channels[1:]


@pytest.mark.parametrize(
    "name", ["resnet152", "resnext101_64x4d", "wide_resnet101_2", "convnext_large", "efficientnet_b7", "swin_b"]
)
def test_large_ones_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        assert len(image_backbone(name, None, finest_stride=16).channels) == 2


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "regnet_y_400mf", "swin_t"])
def test_other_trunks_compute_what_torchvision_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    last = image_backbone(name, tmp_path / "weights.pth", finest_stride=16).eval()(x := torch.rand(1, 3, 64, 64))[-1]
    if name == "swin_t":
        expected = theirs.head(theirs.norm(last.movedim(1, -1)).mean(dim=(1, 2)))
    elif name.startswith("regnet"):
        expected = theirs.fc(last.mean(dim=(2, 3)))
    else:  # ConvNeXt's classifier flattens by itself.
        expected = theirs.classifier(last.mean(dim=(2, 3), keepdim=name.startswith("convnext")))
    torch.testing.assert_close(theirs(x), expected)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown image backbone .*got resnet51; expected one of .*resnet50"):
        image_backbone("resnet51", None, finest_stride=16)
    with pytest.raises(ConfigError, match=r"got vit_b_16; expected one of .*swin_t.* other families have no maps"):
        image_backbone("vit_b_16", None, finest_stride=16)


def test_old_files_without_counters_and_classifier_load(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    old = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    torch.save(old, weights)
    loaded = image_backbone("resnet18", weights, finest_stride=16)
    torch.testing.assert_close(loaded.layer4.state_dict()["1.conv2.weight"], state["layer4.1.conv2.weight"])


def _without_stem(state: State) -> State:
    return {key: value for key, value in state.items() if key != "conv1.weight"}


def _with_a_prefix(state: State) -> State:
    return {f"net.{key}": value for key, value in state.items()}


def _of_one_channel(state: State) -> State:
    return {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_stem, r"got 1 missing: conv1\.weight; expected"),
        (_with_a_prefix, r"got \d+ missing: conv1\.weight, bn1\.weight, .*; \d+ unexpected: net\.conv1\.weight"),
        (_of_one_channel, r"1 of another shape: conv1\.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Path, damage: Callable[[State], State], message: str) -> None:
    torch.save(damage(torch.load(weights, weights_only=True)), weights)
    with pytest.raises(ConfigError, match=message) as refusal:
        image_backbone("resnet18", weights, finest_stride=16)
    assert "expected a state dict of torchvision's resnet18" in str(refusal.value)


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing: layer1\.2\.conv1\.weight"):
        image_backbone("resnet34", weights, finest_stride=16)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"])
def test_a_file_that_is_not_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights cannot be read .*weights\.pth.* expected a state dict"):
        image_backbone("resnet18", path, finest_stride=16)


def test_a_training_checkpoint_is_not_taken_for_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "epoch.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(ConfigError, match="got epoch, state_dict; expected a state dict"):
        image_backbone("resnet18", path, finest_stride=16)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pth\); got No such file"):
        image_backbone("resnet18", tmp_path / "none.pth", finest_stride=16)
