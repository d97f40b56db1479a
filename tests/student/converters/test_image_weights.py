"""Image weights of files and of torchvision, in a torch.hub folder of the test's own; nothing is fetched."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from cache.config import load_yaml
from cache.errors import ConfigError
from student.config.student import DetectorConfig, StudentConfig
from student.converters.image_weights import load_image_weights
from student.models.checkpoint import checkpoint_bytes, checkpoint_metadata
from student.models.detectors import BevDetector, build_detector
from student.training.checkpointing import LAST
from student.training.plan import plan_training
from student.training.setup import set_up_training
from tests.factories.students import TINY

State = dict[str, Tensor]
TINY_DETECTOR = DetectorConfig.model_validate(TINY["detector"])
RESNET18 = "resnet18-f37072fd.pth"
"""torchvision's name of the file."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch.hub's files, which is not there yet; what is asked for from a network raises."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def _no_network(url: str, path: str, digest: str, progress: bool) -> None:
    raise OSError(f"no network for {url.rsplit('/')[-1]}, {digest}")


def loaded(weights: Path | str, backbone: str = "resnet18") -> BevDetector:
    config = TINY_DETECTOR.model_copy(update={"image_weights": weights, "image_backbone": backbone})
    detector = build_detector(config)
    load_image_weights(detector)
    return detector.eval()


def last_map(detector: BevDetector, x: Tensor) -> Tensor:
    return detector.image_encoder.backbone(x)[-1]


def test_a_trunk_computes_what_torchvision_computes(weights: Path) -> None:
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    theirs.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = theirs.fc(last_map(loaded(weights), x).mean(dim=(2, 3)))
    torch.testing.assert_close(theirs(x), expected)


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "regnet_y_400mf", "swin_t"])
def test_other_trunks_compute_what_torchvision_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    last = last_map(loaded(tmp_path / "weights.pth", name), x := torch.rand(1, 3, 64, 64))
    if name == "swin_t":
        expected = theirs.head(theirs.norm(last.movedim(1, -1)).mean(dim=(1, 2)))
    elif name.startswith("regnet"):
        expected = theirs.fc(last.mean(dim=(2, 3)))
    else:  # ConvNeXt's classifier flattens by itself.
        expected = theirs.classifier(last.mean(dim=(2, 3), keepdim=name.startswith("convnext")))
    torch.testing.assert_close(theirs(x), expected)


def test_a_public_students_checkpoint_gives_its_image_backbone(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    trunk = {f"module.img_backbone.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    others = {"module.img_view_transformer.depthnet.weight": torch.ones(1), "module.pts_bbox_head.x": torch.ones(1)}
    torch.save({"meta": {"mmdet3d_version": "0.17.2"}, "state_dict": trunk | others}, tmp_path / "bevdet.pth")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(last_map(loaded(tmp_path / "bevdet.pth"), x), last_map(loaded(weights), x))


def test_a_public_student_that_cannot_be_imported_gives_no_backbone(tmp_path: Path) -> None:
    torch.save({"img_view_transformer.depth_net.bn.weight": torch.ones(27)}, tmp_path / "bevdet2.pth")
    with pytest.raises(ConfigError, match=r"weights cannot be read .*got .*red and blue exchanged.*BEVDet 2\.x"):
        loaded(tmp_path / "bevdet2.pth")


def test_torchvisions_weights_are_those_of_torch_hubs_cache(hub: Path, weights: Path) -> None:
    hub.mkdir(parents=True)
    weights.rename(hub / RESNET18)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(last_map(loaded("torchvision"), x), last_map(loaded(hub / RESNET18), x))
    detector = build_detector(TINY_DETECTOR.model_copy(update={"image_weights": "torchvision"}))
    assert load_image_weights(detector) == "torchvision's ResNet18_Weights.IMAGENET1K_V1"


def test_torchvisions_weights_are_fetched_once(
    hub: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[tuple[str, str]] = []

    def fetch(url: str, path: str, digest: str, progress: bool) -> None:
        fetched.append((url.rsplit("/")[-1], digest))
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    loaded("torchvision")
    assert f"fetching torchvision's ResNet18_Weights.IMAGENET1K_V1 into {hub}" in capsys.readouterr().err
    loaded("torchvision")
    assert fetched == [(RESNET18, "f37072fd")]


def test_without_a_network_the_file_and_its_place_are_named(hub: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded("torchvision")
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    assert str(caught.value) == (
        "torchvision's weights of the image backbone cannot be fetched (detector.image_weights); "
        f"got no network for {RESNET18}, f37072fd; expected {hub / RESNET18}. Fetch {RESNET18} where there is a "
        f"network, from {url}, and copy it to {hub}, or give detector.image_weights a file; null trains from random "
        "weights."
    )


def test_other_bytes_than_torchvisions_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / RESNET18).write_text("a login page of a proxy")
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "url", (tmp_path / RESNET18).as_uri())
    digest = hashlib.sha256(b"a login page of a proxy").hexdigest()
    with pytest.raises(ConfigError, match=rf"cannot be fetched .*got invalid hash value.*{digest}"):
        loaded("torchvision")
    assert not (hub / RESNET18).exists()


def test_a_broken_file_in_the_cache_is_to_be_removed(hub: Path) -> None:
    hub.mkdir(parents=True)
    (hub / RESNET18).write_bytes(b"cut short")
    with pytest.raises(
        ConfigError, match=rf"cannot be read \(.*{RESNET18}\).*Remove the file, so that it is fetched again"
    ):
        loaded("torchvision")


@pytest.mark.parametrize(
    ("backbone", "chosen", "got", "there"),
    [
        ("resnet18", "torchvision:IMAGENET1K_V2", "torchvision:IMAGENET1K_V2", "torchvision:IMAGENET1K_V1"),
        ("regnet_y_128gf", "torchvision", "torchvision, which is IMAGENET1K_V1", "torchvision:IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_weights_that_torchvision_does_not_have(backbone: str, chosen: str, got: str, there: str) -> None:
    with torch.device("meta"):
        detector = build_detector(TINY_DETECTOR)
    detector.config = TINY_DETECTOR.model_copy(update={"image_backbone": backbone, "image_weights": chosen})
    with pytest.raises(ConfigError, match=f"no such weights of {backbone} .*got {got}; expected one of {there}"):
        load_image_weights(detector)


def test_a_configuration_tells_torchvision_from_a_path(tmp_path: Path) -> None:
    def read(text: str) -> Path | str | None:
        return load_yaml(None, StudentConfig, [f"detector.image_weights={text}"]).detector.image_weights

    assert (read("torchvision"), read("null")) == ("torchvision", None)
    assert read("torchvision:IMAGENET1K_V2") == "torchvision:IMAGENET1K_V2"
    assert read("torchvision.pth") == Path("torchvision.pth")
    config = load_yaml(None, StudentConfig, ["detector.image_weights=torchvision"])
    assert StudentConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_plan_and_a_resumed_or_derived_training_fetch_nothing(hub: Path, made_root: Path, tmp_path: Path) -> None:
    config = StudentConfig.model_validate(TINY | {"detector": TINY["detector"] | {"image_weights": "torchvision"}})
    assert plan_training(config, made_root, ()).steps > 0
    with pytest.raises(ConfigError, match="weights of the image backbone cannot be fetched"):
        set_up_training(config, made_root, (), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    last = tmp_path / "run" / LAST
    state = {f"detector.{name}": value for name, value in build_detector(config.detector).state_dict().items()}
    last.parent.mkdir(parents=True)
    last.write_bytes(checkpoint_bytes(checkpoint_metadata(config) | {"state_dict": state, "global_step": 1}))
    assert set_up_training(config, made_root, (), tmp_path / "run", resume=True).step == 1
    start = config.training.model_copy(update={"init_from": last})
    set_up_training(config.model_copy(update={"training": start}), made_root, (), tmp_path / "derived")


def test_old_files_without_counters_and_classifier_load(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    old = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    torch.save(old, weights)
    backbone = loaded(weights).image_encoder.backbone
    torch.testing.assert_close(backbone.layer4.state_dict()["1.conv2.weight"], state["layer4.1.conv2.weight"])


def _without_stem(state: State) -> State:
    return {key: value for key, value in state.items() if key != "conv1.weight"}


def _with_another_stage(state: State) -> State:
    return {**state, "layer5.bias": torch.zeros(3)}


def _of_one_channel(state: State) -> State:
    return {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_stem, r"got 1 missing: conv1\.weight; expected"),
        (_with_another_stage, r"got 1 unexpected: layer5\.bias"),
        (_of_one_channel, r"1 of another shape: conv1\.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Path, damage: Callable[[State], State], message: str) -> None:
    torch.save(damage(torch.load(weights, weights_only=True)), weights)
    with pytest.raises(ConfigError, match=message) as refusal:
        loaded(weights)
    assert "expected the weights of torchvision's resnet18, alone or in a public" in str(refusal.value)


def test_names_with_a_prefix_are_no_known_network(weights: Path) -> None:
    torch.save({f"net.{key}": value for key, value in torch.load(weights, weights_only=True).items()}, weights)
    with pytest.raises(ConfigError, match=r"cannot be read .*no known detector's checkpoint: 122 tensors under net"):
        loaded(weights)


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing: layer1\.2\.conv1\.weight"):
        loaded(weights, "resnet34")


def test_values_must_be_finite(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["layer1.0.conv1.weight"][0] = torch.nan
    torch.save(state, weights)
    with pytest.raises(ConfigError, match=r"weights are not finite \(.*resnet18\.pth\); got layer1\.0\.conv1\.weight"):
        loaded(weights)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"])
def test_a_file_that_is_not_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights cannot be read .*weights\.pth.* expected torchvision's state dict"):
        loaded(path)


def test_a_training_checkpoint_is_not_taken_for_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "epoch.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(ConfigError, match="got the checkpoint holds no state dict: epoch, state_dict; expected"):
        loaded(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pth\); got No such file"):
        loaded(tmp_path / "none.pth")
