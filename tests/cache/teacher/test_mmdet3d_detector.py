"""Detectors that would lie elsewhere than their grids say, or see less than they were trained with, are refused."""

from pathlib import Path

import pytest
import torch

from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_config import read_config, zoo_configs
from cache.teacher.mmdet3d_detector import build_detector
from cache.teacher.mmdet3d_grids import strided

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

DEMO = str(Path(__file__).parents[3] / "configs" / "demo" / "teacher_model.py")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("pts_middle_encoder=dict(output_shape=[100, 64])", r"output_shape\); got \(100, 64\); expected \(64, 64\)"),
        ("pts_bbox_head=dict(bbox_coder=dict(out_size_factor=4))", r"out_size_factor\); got \(4, 4\); exp"),
        ("pts_bbox_head=dict(bbox_coder=dict(pc_range=[-16.0, -12.8]))", r"pc_range\); got \(-16\.0, -12\.8\)"),
        ("pts_bbox_head=dict(bbox_coder=dict(voxel_size=[0.2, 0.2]))", r"voxel_size\); got \(0\.2, 0\.2\); expected"),
        (
            "data_preprocessor=dict(voxel_layer=dict(voxel_size=[0.3, 0.4, 8]))",
            r"range is not a whole number of its voxels .*voxel_layer",
        ),
    ],
)  # fmt: skip
def test_other_cells_than_the_voxels_are_refused(model: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(f"_base_ = [{DEMO!r}]\nmodel = dict({model})")
    with pytest.raises(TeacherError, match=said):
        load_teacher(str(tmp_path / "config.py"), None)


def test_a_stride_that_does_not_divide_is_refused() -> None:
    """A canvas of 80 x 76 pillars, whose third stage has 10 x 10 cells for 76 / 8 = 9.5: they were stretched."""
    canvas = BevGrid(x_range_m=(-15.2, 15.2), y_range_m=(-16.0, 16.0), cell_m=(0.4, 0.4))
    assert strided(canvas, (40, 38), "head", "mine").cell_m == pytest.approx((0.8, 0.8))
    with pytest.raises(
        TeacherError, match=r"\(mine, backbone2\); got 10 x 10 cells for a canvas of 80 x 76; expected a"
    ):
        strided(canvas, (10, 10), "backbone2", "mine")


def test_an_image_branch_is_not_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(
        f"_base_ = [{DEMO!r}]\nmodel = dict(img_backbone=dict(type='mmdet.ResNet', depth=18))"
    )
    with pytest.raises(TeacherError, match=r"fuses images with points, .*got CenterPoint with img_backbone\. Choose"):
        load_teacher(str(tmp_path / "config.py"), None)


def test_camera_detectors_take_no_voxels() -> None:
    (name,) = (name for name in zoo_configs() if name.startswith("fcos3d_r101") and name.endswith("mono3d"))
    with pytest.raises(TeacherError, match=r"takes no voxels of LiDAR points .*got FCOSMono3D with"):
        build_detector(read_config(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = dict(type='CenterPoint', pts_voxel_layer=dict())", r"of mmdet3d 0\.x, .*got model\.pts_voxel_layer"),
        ("model = dict(type='VoxelNet', reader=dict())", r"of det3d \(tianweiy/CenterPoint\)"),
        ("MODEL = dict()\nDATA_CONFIG = dict()", "configuration is OpenPCDet's"),
    ],
)
def test_configurations_of_others_are_recognised(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(TeacherError, match=said):
        read_config(str(tmp_path / "config.py"))


def test_names_with_dots_are_found() -> None:
    assert (
        read_config("pointpillars_hv_regnet-1.6gf_fpn_sbn-all_8xb4-2x_nus-3d").model.pts_backbone.arch
        == "regnetx_1.6gf"
    )


def test_a_pure_python_configuration(tmp_path: Path) -> None:
    """mmdet3d 1.4's style names types as classes."""
    (tmp_path / "config.py").write_text(
        "from mmengine.config import read_base\n"
        "from mmdet3d.models.detectors import CenterPoint\n"
        "from mmdet3d.datasets.transforms import LoadPointsFromMultiSweeps\n"
        "with read_base():\n    from .base import *\n"
        "model.update(dict(type=CenterPoint))\n"
        "test_dataloader = dict(dataset=dict(pipeline=[\n"
        "    dict(type=LoadPointsFromMultiSweeps, sweeps_num=3, use_dim=(0, 1, 2, 3, 4))]))\n"
    )
    (tmp_path / "base.py").write_text(Path(DEMO).read_text())
    teacher, demo = load_teacher(str(tmp_path / "config.py"), None), load_teacher(DEMO, None)
    assert teacher.identity.weights_sha256 == demo.identity.weights_sha256
    assert (teacher.points.past_sweeps, teacher.points.columns) == (3, (0, 1, 2, 3, 4))


def test_deformable_heads_run_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(
        f"_base_ = [{DEMO!r}]\n"
        "model = dict(pts_bbox_head=dict(separate_head=dict(_delete_=True, type='DCNSeparateHead', "
        "dcn_config=dict(type='DCN', in_channels=16, out_channels=16, kernel_size=3, padding=1, groups=4), "
        "head_conv=16, init_bias=-2.19, final_kernel=3)))"
    )
    teacher = load_teacher(str(tmp_path / "config.py"), None)
    assert any("DeformConv" in type(part).__name__ for part in teacher.network.modules())
    torch.save({"state_dict": dict(teacher.network.state_dict())}, tmp_path / "w.pth")
    again = load_teacher(str(tmp_path / "config.py"), tmp_path / "w.pth", random_seed=3)
    assert again.identity.weights_sha256 == teacher.identity.weights_sha256
