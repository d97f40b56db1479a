"""The test pipeline of a configuration: applied, or refused step by step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import TeacherError
from cache.spec import PointPipeline
from cache.teacher.base import TeacherInput
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_points import point_pipeline

mmengine = pytest.importorskip("mmengine", reason="the teacher's libraries are not installed")

DEMO = str(Path(__file__).parents[3] / "configs" / "demo" / "teacher_model.py")
FILE = "dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5{more})"
SWEEPS = "dict(type='LoadPointsFromMultiSweeps', sweeps_num=9, use_dim=[0, 1, 2, 3, 4])"
RANGE = [-16.0, -16.0, -5.0, 16.0, 16.0, 3.0]


def config(*steps: str, takes: int = 5):
    """A configuration with these steps, of a detector over RANGE."""
    model = (
        f"model = dict(data_preprocessor=dict(voxel_layer=dict(point_cloud_range={RANGE})), "
        f"pts_voxel_encoder=dict(in_channels={takes}))"
    )
    return mmengine.Config.fromstring(
        f"{model}\ntest_dataloader = dict(dataset=dict(pipeline=[{', '.join(steps)}]))", ".py"
    )


AROUND = """dict(type='MultiScaleFlipAug3D', img_scale=(1333, 800), pts_scale_ratio=1, flip=False, transforms=[
    dict(type='GlobalRotScaleTrans', rot_range=[0, 0], scale_ratio_range=[1., 1.], translation_std=[0, 0, 0]),
    dict(type='RandomFlip3D'),
    dict(type='PointsRangeFilter', point_cloud_range=[-16.0, -16.0, -5.0, 16.0, 16.0, 3.0])])"""


def test_the_zoos_own_steps_change_nothing() -> None:
    steps = (FILE.format(more=""), SWEEPS, AROUND, "dict(type='Pack3DDetInputs', keys=['points'])")
    assert point_pipeline(config(*steps)) == PointPipeline(past_sweeps=9, pad_empty_sweeps=False, remove_close_m=0)


@pytest.mark.parametrize(("dims", "columns"), [("[0, 1, 2, 4]", (0, 1, 2, 4)), ("(0, 1, 2, 3)", (0, 1, 2, 3))])
def test_columns_may_be_fewer_and_a_tuple(dims: str, columns: tuple) -> None:
    sweeps = f"dict(type='LoadPointsFromMultiSweeps', sweeps_num=0, use_dim={dims})"
    assert point_pipeline(config(sweeps, takes=4)).columns == columns


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (FILE.format(more=", norm_intensity=True"), r"got LoadPointsFromFile with norm_intensity=True; exp"),
        ("dict(type='PointSample', num_points=9)", "has a step that a dump does not.*got PointSample; exp"),
        ("dict(type='RandomFlip3D', flip_ratio_bev_horizontal=0.5)", r"with flip_ratio_bev_horizontal=0.5"),
        ("dict(type='GlobalRotScaleTrans')", "GlobalRotScaleTrans with rot_range=missing, scale_ratio_range=missing"),
        (AROUND.replace("[1., 1.]", "[0.9, 1.1]"), r"scale_ratio_range=\[0\.9, 1\.1\]; expected scale_ratio_"),
        (AROUND.replace("flip=False", "flip=True"), "augments, and a dump runs it once .*flip=True"),
        (AROUND.replace("ratio=1,", "ratio=[0.95, 1.0],"), r"pts_scale_ratio=\[0\.95, 1\.0\]"),
    ],
)  # fmt: skip
def test_steps_that_would_change_the_points_are_refused(step: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        point_pipeline(config(SWEEPS, step))


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        ("dict(type='LoadPointsFromMultiSweeps', sweeps_num='ten', use_dim=5)", "sweeps_num"),
        ("dict(type='LoadPointsFromMultiSweeps', use_dim=None)", "use_dim"),
        ("dict(type='LoadPointsFromMultiSweeps', use_dim=[3, 1, 2, 0, 4])", r"got use_dim=\[3, 1"),
        (SWEEPS + ", dict(type='PointsRangeFilter')", "point_cloud_range"),
    ],
)
def test_values_that_make_no_sense_are_named(sweeps: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        point_pipeline(config(sweeps))


def test_a_narrower_range_is_applied_and_recorded(tmp_path: Path) -> None:
    """PointsRangeFilter leaves out what lies on or beyond its edges; the teacher sees as much."""
    narrow = [-8.0, -8.0, -5.0, 8.0, 8.0, 3.0]
    (tmp_path / "narrow.py").write_text(
        f"_base_ = [{DEMO!r}]\ntest_dataloader = dict(dataset=dict(pipeline=["
        f"{SWEEPS}, dict(type='PointsRangeFilter', point_cloud_range={narrow})]))"
    )
    teacher, wide = load_teacher(str(tmp_path / "narrow.py"), None), load_teacher(DEMO, None)
    assert teacher.points.range_m == tuple(narrow)
    points = np.random.default_rng(0).uniform([-15, -15, -3, 0, 0], [15, 15, 1, 255, 0.5], (900, 5)).astype(np.float32)
    points[0, :3] = -8.0, 0.0, 0.0
    inside = points[(np.abs(points[:, :2]) < 8).all(axis=1)]
    assert 0 < len(inside) < 300
    ours, expected = (
        t([t.prepare(TeacherInput.of_points(p))]) for t, p in ((teacher, points), (wide, inside))
    )  # fmt: skip
    assert torch.equal(ours.canvas_mask, expected.canvas_mask)
    assert torch.equal(ours.layers["head"], expected.layers["head"])
