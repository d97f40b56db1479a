"""Files with the names and shapes of the public modules, written out here from their structure and not from our map."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from cache.config import load_yaml
from cache.errors import ConfigError, DataError
from cache.geometry.grid import BevGrid
from cache.spec import Decoding
from student.config.student import TASKS, DetectorConfig, HeadConfig, StudentConfig
from student.converters.convert import ImportPlan, plan_import
from student.models.center_head import CenterHead
from student.models.checkpoint import load_student, start_from
from student.models.decoding import decode
from student.models.depth_net import DeformableDepthNet
from student.models.detectors import build_detector

CONFIGS = Path(__file__).parents[3] / "configs"
Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Public:
    """Sizes of a detector of BEVDet 0.x; the defaults are those of bevdepth4d-r50.py."""

    resnet: str = "resnet50"
    widths: tuple[int, int] = (1024, 2048)
    neck: int = 512
    depth: bool = True
    inner: int = 256
    bins: int = 59
    lifted: int = 64
    times: int = 2
    bev: tuple[int, int, int] = (128, 256, 512)
    bev_neck: int = 256
    shared: int = 64
    cells: int = 128
    image: tuple[int, int] = (256, 704)


def conv(name: str, inner: int, outer: int, kernel: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outer, inner, kernel, kernel)
    if bias:
        yield f"{name}.bias", (outer,)


def norm(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def conv_module(name: str, inner: int, outer: int) -> Shapes:
    """mmcv's ConvModule with a norm."""
    yield from conv(f"{name}.conv", inner, outer, 3, bias=False)
    yield from norm(f"{name}.bn", outer)


def resnet_for_bevdet(name: str, inner: int, channels: tuple[int, ...], blocks: int) -> Shapes:
    """ResNetForBEVDet: mmdet's BasicBlocks, the first of a stage with a 3 x 3 convolution as its shortcut."""
    for stage, outer in enumerate(channels):
        for block in range(blocks):
            prefix = f"{name}.layers.{stage}.{block}"
            yield from conv(f"{prefix}.conv1", inner if block == 0 else outer, outer, 3, bias=False)
            yield from norm(f"{prefix}.bn1", outer)
            yield from conv(f"{prefix}.conv2", outer, outer, 3, bias=False)
            yield from norm(f"{prefix}.bn2", outer)
            if block == 0:
                yield from conv(f"{prefix}.downsample", inner, outer, 3)
        inner = outer


def view_transformer(p: Public) -> Shapes:
    name = "img_view_transformer"
    yield from ((f"{name}.{part}", (3,)) for part in ("dx", "bx", "nx"))
    yield f"{name}.frustum", (p.bins, p.image[0] // 16, p.image[1] // 16, 3)
    if not p.depth:
        yield from conv(f"{name}.depthnet", p.neck, p.bins + p.lifted, 1)
        return
    yield from conv(f"{name}.depthnet", p.inner, p.bins, 1)
    yield from resnet_for_bevdet(f"{name}.extra_depthnet", p.inner, (p.inner,), blocks=3)
    yield from conv(f"{name}.featnet", p.neck, p.lifted, 1)
    yield from conv(f"{name}.dcn.0", p.inner, p.inner, 3)
    yield from conv(f"{name}.dcn.0.conv_offset", p.inner, 27, 3)
    yield from norm(f"{name}.dcn.1", p.inner)
    yield from conv(f"{name}.se.input_conv", p.neck, p.inner, 1)
    yield from norm(f"{name}.se.fc.0", 33)
    yield f"{name}.se.fc.1.weight", (p.inner, 33)
    yield f"{name}.se.fc.1.bias", (p.inner,)


def center_head(p: Public) -> Shapes:
    yield from conv_module("pts_bbox_head.shared_conv", p.bev_neck, p.shared)
    for task, names in enumerate(TASKS):
        for branch, width in {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": len(names)}.items():
            prefix = f"pts_bbox_head.task_heads.{task}.{branch}"
            yield from conv_module(f"{prefix}.0", p.shared, 64)
            yield from conv(f"{prefix}.1", 64, width, 3)


def public_shapes(p: Public) -> Shapes:
    trunk = torchvision.models.get_model(p.resnet, weights=None).state_dict()  # mmdet's ResNet has the same names.
    yield from ((f"img_backbone.{name}", tuple(v.shape)) for name, v in trunk.items() if not name.startswith("fc."))
    for level, width in enumerate(p.widths):
        yield from conv(f"img_neck.lateral_convs.{level}.conv", width, p.neck, 1)
    yield from conv("img_neck.fpn_convs.0.conv", p.neck, p.neck, 3)
    yield from view_transformer(p)
    if p.times > 1:
        yield from resnet_for_bevdet("pre_process_net", p.lifted, (p.lifted,), blocks=2)
    yield from resnet_for_bevdet("img_bev_encoder_backbone", p.lifted * p.times, p.bev, blocks=2)
    wide = 2 * p.bev_neck
    yield from conv("img_bev_encoder_neck.conv.0", p.bev[0] + p.bev[2], wide, 3, bias=False)
    yield from norm("img_bev_encoder_neck.conv.1", wide)
    yield from conv("img_bev_encoder_neck.conv.3", wide, wide, 3, bias=False)
    yield from norm("img_bev_encoder_neck.conv.4", wide)
    yield from conv("img_bev_encoder_neck.up2.1", wide, p.bev_neck, 3, bias=False)
    yield from norm("img_bev_encoder_neck.up2.2", p.bev_neck)
    yield from conv("img_bev_encoder_neck.up2.4", p.bev_neck, p.bev_neck, 1)
    yield from center_head(p)


def public_state(p: Public, seed: int = 0) -> dict[str, Tensor]:
    """Made-up values; the grid's own tensors are consistent."""
    g = torch.Generator().manual_seed(seed)
    state = {name: torch.rand(shape, generator=g) * 0.1 for name, shape in public_shapes(p)}
    half, prefix = p.cells * 0.4, "img_view_transformer."
    state[f"{prefix}dx"] = torch.tensor([0.8, 0.8, 20.0])
    state[f"{prefix}bx"] = torch.tensor([-half + 0.4, -half + 0.4, 0.0])
    state[f"{prefix}nx"] = torch.tensor([p.cells, p.cells, 1.0])
    state[f"{prefix}frustum"][..., 2] = torch.arange(1.0, p.bins + 1).view(-1, 1, 1)
    return state


SMALL = Public(
    resnet="resnet18", widths=(256, 512), neck=16, inner=8, bins=11, lifted=8, bev=(8, 16, 32), bev_neck=16, cells=16
)  # fmt: skip


def student(name: str = "bevdepth4d", **changes: object) -> StudentConfig:
    """The configuration that SMALL fits."""
    detector = DetectorConfig(
        name=name,
        image_backbone="resnet18",
        image_neck_channels=16,
        depth_m=(1.0, 12.0, 1.0),
        grid=BevGrid(x_range_m=(-6.4, 6.4), y_range_m=(-6.4, 6.4), cell_m=(0.8, 0.8)),
        lift_channels=8,
        bev_channels=(8, 16, 32),
        bev_neck_channels=16,
        depth_net="dcn",
        depth_channels=8,
        head=HeadConfig(shared_channels=64),
    )
    return StudentConfig(detector=detector.model_copy(update=changes))


def planned(path: Path, state: dict[str, Tensor], config: StudentConfig, version: str | None = None) -> ImportPlan:
    meta = {} if version is None else {"mmdet3d_version": version, "CLASSES": ["car"], "config": "model = dict()"}
    torch.save({"meta": meta, "state_dict": state} if meta else state, path / "public.pth")
    return plan_import(path / "public.pth", config)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("bevdepth4d", SMALL),
        ("bevdepth", replace(SMALL, times=1)),
        ("bevdet4d", replace(SMALL, depth=False)),
        ("bevdet", replace(SMALL, depth=False, times=1)),
    ],
)
def test_every_public_tensor_finds_its_place(name: str, public: Public, tmp_path: Path) -> None:
    state = public_state(public)
    plan = planned(tmp_path, state, student(name), version="0.17.2")
    unused = {f"img_view_transformer.{part}" for part in ("dx", "bx", "nx", "frustum")}
    assert {row.public for row in plan.report.of("unused")} == unused
    assert {row.public for row in plan.report.of("used")} == set(state) - unused
    assert not plan.report.of("missing") and not plan.report.of("no place") and not plan.report.of("other shape")
    plan.write(tmp_path / "ours.ckpt")
    detector, config = load_student(tmp_path / "ours.ckpt")
    assert config == student(name)
    ours = detector.state_dict()
    assert len(ours) == len(state) - len(unused)
    assert torch.equal(
        ours["image_encoder.backbone.layer3.0.conv1.weight"], state["img_backbone.layer3.0.conv1.weight"]
    )
    assert torch.equal(ours["bev_neck.up2.4.bias"], state["img_bev_encoder_neck.up2.4.bias"])
    # The public 4D models predict how far a box moved between the two frames, here 0.5 s apart.
    seconds = 0.5 if public.times > 1 else 1.0
    moved = state["pts_bbox_head.task_heads.5.vel.1.weight"]
    torch.testing.assert_close(ours["head.task_heads.5.vel.1.weight"], moved / seconds)
    assert torch.equal(ours["head.task_heads.5.dim.1.bias"], state["pts_bbox_head.task_heads.5.dim.1.bias"][[1, 0, 2]])


def test_the_public_r50_at_full_size(tmp_path: Path) -> None:
    config = load_yaml(CONFIGS / "bevdepth4d_r50.yaml", StudentConfig)
    plan = planned(tmp_path, public_state(Public()), config)
    assert (
        "0 missing" in str(plan.report) and "no place" not in str(plan.report) and "other shape" not in str(plan.report)
    )


def test_boxes_after_the_conversion_are_those_of_the_file(tmp_path: Path) -> None:
    state = {name: v * 0.01 if ".dim.1." in name else v for name, v in public_state(SMALL, seed=3).items()}
    plan = planned(tmp_path, state, student(history_step=3), version="0.17.2")
    assert "boxes of mmdet3d 0.17.2 converted" in str(plan.report)
    assert "converted from metres moved to m/s" in {row.note for row in plan.report.of("used")}
    config = HeadConfig(shared_channels=64)
    old, new = CenterHead(16, config).eval(), CenterHead(16, config).eval()
    prefix = "pts_bbox_head."
    old.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    new.load_state_dict({k.removeprefix("head."): v for k, v in plan.state.items() if k.startswith("head.")})
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    (_, maps), grid = old(x), student().detector.grid
    heatmap = torch.rand(1, 10, 16, 16, generator=torch.Generator().manual_seed(5))
    decoding = Decoding(nms_type="circle", min_radius=(0.0,) * 6)
    (as_old,), (as_new,) = (decode(heatmap, m, grid, TASKS, decoding) for m in (maps, new(x)[1]))
    # mmdet3d's own rule from one convention to the other: sizes swap, yaw becomes -yaw - pi / 2.
    expected = as_old.boxes.clone()
    expected[:, 3:5] = as_old.boxes[:, [4, 3]]
    expected[:, 7:9] = as_old.boxes[:, 7:9] / 1.5  # what the public evaluation does with frames 1.5 s apart
    expected[:, 6] = -as_old.boxes[:, 6] - math.pi / 2
    turn = (as_new.boxes[:, 6] - expected[:, 6] + math.pi) % (2 * math.pi) - math.pi
    torch.testing.assert_close(turn, torch.zeros_like(turn), atol=1e-4, rtol=0)
    torch.testing.assert_close(as_new.boxes[:, [0, 1, 2, 3, 4, 5, 7, 8]], expected[:, [0, 1, 2, 3, 4, 5, 7, 8]])


@pytest.mark.parametrize(
    ("version", "expected_text"), [(None, "names no version"), ("1.0.0rc4", "1.0.0rc4 as they are")]
)
def test_the_file_s_version_decides_about_boxes(version: str | None, expected_text: str, tmp_path: Path) -> None:
    state = public_state(SMALL)
    plan = planned(tmp_path, state, student(), version)
    assert expected_text in str(plan.report)
    same = torch.equal(plan.state["head.task_heads.0.rot.1.bias"], state["pts_bbox_head.task_heads.0.rot.1.bias"])
    assert same == (version is not None)


def test_the_deformable_depth_net_computes_what_the_public_one_does(tmp_path: Path) -> None:
    """The public forward pass, written out with mmcv's own deformable convolution."""
    ops = pytest.importorskip("mmcv.ops")
    state = {k.removeprefix("img_view_transformer."): v for k, v in public_state(SMALL, seed=1).items()}
    x, cameras = torch.randn(2, 16, 4, 6), torch.randn(2, 33)

    def normed(name: str, value: Tensor) -> Tensor:
        return F.batch_norm(
            value, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        )

    def convolved(name: str, value: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(value, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    depth = convolved("se.input_conv", x)
    gate = F.linear(normed("se.fc.0", cameras), state["se.fc.1.weight"], state["se.fc.1.bias"]).sigmoid()
    depth = depth * gate[:, :, None, None]
    for block in range(3):
        name = f"extra_depthnet.layers.0.{block}"
        inner = normed(f"{name}.bn1", convolved(f"{name}.conv1", depth)).relu()
        shortcut = convolved(f"{name}.downsample", depth) if block == 0 else depth
        depth = (normed(f"{name}.bn2", convolved(f"{name}.conv2", inner)) + shortcut).relu()
    first, second, mask = convolved("dcn.0.conv_offset", depth).chunk(3, dim=1)
    offset = torch.cat([first, second], dim=1)
    weight, bias = state["dcn.0.weight"], state["dcn.0.bias"]
    depth = ops.modulated_deform_conv2d(depth, offset, mask.sigmoid(), weight, bias, 1, 1, 1, 1, 1)
    depth = convolved("depthnet", normed("dcn.1", depth))

    ours = DeformableDepthNet(16, 11, 8, depth_channels=8).eval()
    plan = planned(tmp_path, public_state(SMALL, seed=1), student())
    prefix = "lift.depth_net."
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in plan.state.items() if k.startswith(prefix)})
    torch.testing.assert_close(ours(x, cameras), torch.cat([depth, convolved("featnet", x)], dim=1))


def test_a_torchvision_resnet_needs_the_rest_to_be_allowed(tmp_path: Path) -> None:
    weights = torchvision.models.resnet18().state_dict()
    plan = planned(tmp_path, weights, student())
    assert {row.public for row in plan.report.of("unused")} == {"fc.weight", "fc.bias"}
    with pytest.raises(ConfigError, match=r"nothing in the checkpoint fills .*image_encoder\.neck.*--allow-missing"):
        plan.write(tmp_path / "a.ckpt")
    rest = ("image_encoder.neck.*", "lift.*", "pre_process.*", "bev_*", "head.*")
    with pytest.raises(ConfigError, match=r"got head\.task_heads\.0"):
        plan.write(tmp_path / "a.ckpt", (*rest[:-1], "head.shared*"))
    assert not (tmp_path / "a.ckpt").exists()
    plan.write(tmp_path / "a.ckpt", rest)
    detector, config = load_student(tmp_path / "a.ckpt")
    x, theirs = torch.rand(1, 3, 64, 64), torchvision.models.resnet18()
    theirs.load_state_dict(weights)
    torch.testing.assert_close(theirs.eval()(x), theirs.fc(detector.image_encoder.backbone(x)[-1].mean(dim=(2, 3))))
    torch.manual_seed(config.training.seed)
    begun = build_detector(config.detector).state_dict()["lift.depth_net.input_conv.weight"]
    assert torch.equal(detector.state_dict()["lift.depth_net.input_conv.weight"], begun)


def test_a_pattern_that_allows_nothing_is_refused(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(SMALL), student())
    with pytest.raises(ConfigError, match=r"nothing missing fits the pattern .*heads\.\*"):
        plan.write(tmp_path / "a.ckpt", ("heads.*",))


def test_other_shapes_stop_it_with_both(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(replace(SMALL, neck=24)), student())
    expected_text = (
        r"img_neck\.fpn_convs\.0\.conv\.bias -> image_encoder\.neck\.fpn_conv\.bias \(24,\): the detector's is \(16,\)"
    )
    assert any(expected_text.replace("\\", "") in str(row) for row in plan.report.of("other shape"))
    with pytest.raises(ConfigError, match=r"other shapes .*\(24, 256, 1, 1\): the detector's is \(16, 256, 1, 1\)"):
        plan.write(tmp_path / "a.ckpt")


def test_a_deeper_detector_has_no_place(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(SMALL), student("bevdepth", depth_net="dcn"))
    with pytest.raises(ConfigError, match=r"other shapes .*bev_backbone"):
        plan.write(tmp_path / "a.ckpt")
    plan = planned(tmp_path, public_state(SMALL) | {"img_backbone.layer5.bias": torch.zeros(2)}, student())
    with pytest.raises(ConfigError, match=r"no place for .*img_backbone\.layer5\.bias.*no such tensor"):
        plan.write(tmp_path / "a.ckpt")
    plan = planned(tmp_path, public_state(SMALL) | {"radar.bias": torch.zeros(2)}, student())
    with pytest.raises(ConfigError, match=r"no place for .*radar\.bias \(2,\): no rule knows it"):
        plan.write(tmp_path / "a.ckpt")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    state = public_state(SMALL)
    del state["img_view_transformer.dcn.0.conv_offset.weight"]
    with pytest.raises(ConfigError, match=r"nothing in the checkpoint fills .*lift\.depth_net\.deform\.offset\.weight"):
        planned(tmp_path, state, student()).write(tmp_path / "a.ckpt")


def test_a_live_teacher_in_the_file_is_set_aside(tmp_path: Path) -> None:
    state = public_state(SMALL) | {
        "teacher_model.pts_neck.weight": torch.zeros(1),
        "adaptation_layers.0.bias": torch.zeros(1),
    }
    plan = planned(tmp_path, state, student())
    assert {"teacher_model.pts_neck.weight", "adaptation_layers.0.bias"} <= {
        row.public for row in plan.report.of("unused")
    }
    plan.write(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        (
            {"depth_m": (1.0, 12.0, 0.5)},
            r"depth bins \(m\): the file's 1, 2 \.\. 11 \(11\), the configuration's 1, 1\.5",
        ),
        ({"z_range_m": (-5.0, 3.0)}, "cell size: the file's 0.8, 0.8, 20, the configuration's 0.8, 0.8, 8"),
        (
            {"grid": BevGrid(x_range_m=(-6.4, 6.4), y_range_m=(0.0, 12.8), cell_m=(0.8, 0.8))},
            "first cell's centre: the file's -6, -6, 0, the configuration's -6, 0.4, 0",
        ),
    ],
)
def test_another_grid_is_refused(changes: dict[str, object], expected_text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"trained on another grid .*{expected_text}"):
        planned(tmp_path, public_state(SMALL), student(**changes))


def test_bevdet_2_is_refused_with_its_reasons(tmp_path: Path) -> None:
    state = {"img_backbone.conv1.weight": torch.zeros(1), "img_view_transformer.depth_net.bn.weight": torch.ones(27)}
    with pytest.raises(DataError, match=r"BEV space is the vehicle's.*red and blue.*BEVDet 2\.x.*BEVDet 0\.x"):
        planned(tmp_path, state, student())


def test_other_files_are_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no known detector's checkpoint .*2 tensors under decoder, encoder"):
        planned(tmp_path, {"encoder.weight": torch.zeros(1), "decoder.bias": torch.zeros(1)}, student())
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(DataError, match="no checkpoint that can be loaded safely"):
        plan_import(tmp_path / "noise.pth", student())


def test_values_must_be_finite(tmp_path: Path) -> None:
    state = public_state(SMALL)
    state["img_backbone.conv1.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"not finite.*image_encoder\.backbone\.conv1\.weight"):
        planned(tmp_path, state, student())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(SMALL), student())
    plan.write(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"a file is there already .*a\.ckpt"):
        plan.write(tmp_path / "a.ckpt")


def test_a_training_starts_from_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(SMALL), student())
    plan.write(tmp_path / "a.ckpt")
    detector = build_detector(student().detector)
    start_from(detector, tmp_path / "a.ckpt")
    assert all(torch.equal(value, plan.state[name]) for name, value in detector.state_dict().items())
    other = build_detector(student(image_stride=8, depth_weight=1.0).detector)
    with pytest.raises(ConfigError, match=r"another detector's .*detector\.image_stride: the checkpoint's 16"):
        start_from(other, tmp_path / "a.ckpt")


def test_the_report_has_a_row_for_each_tensor(tmp_path: Path) -> None:
    plan = planned(tmp_path, public_state(SMALL), student())
    assert len(plan.report.rows) == len(public_state(SMALL))
