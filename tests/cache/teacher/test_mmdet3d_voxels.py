"""Detectors that voxelise themselves, whose rows run along x: BEVFusion's LiDAR branch, and a small one like it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.spec import CodecSpec
from cache.store.codec import encode
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from cache.teacher.mmdet3d_grids import require_consistent, require_decodable
from cache.teacher.mmdet3d_voxels import CpuVoxels

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

OWN_VOXELS = str(Path(__file__).parents[2] / "data" / "teachers" / "own_voxels.py")


@pytest.fixture(scope="module")
def teacher() -> Mmdet3dTeacher:
    return load_teacher(OWN_VOXELS, None)


def cloud(seed: int, count: int = 400) -> np.ndarray:
    """Random points, some of them beyond the range."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-17, -13, -4, 0, 0], [17, 13, 2, 255, 0.5], (count, 5)).astype(np.float32)


def test_it_describes_itself(teacher: Mmdet3dTeacher) -> None:
    assert teacher.canvas_grid == BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-12.0, 12.0), cell_m=(0.4, 0.4))
    shapes = {name: grid.shape for name, grid in teacher.layer_grids.items()}
    assert shapes == {"head": (30, 40), "backbone0": (30, 40), "backbone1": (15, 20)}
    assert (teacher.has_heatmap, teacher.points.past_sweeps, teacher.points.range_m) == (False, 3, None)
    assert (len(teacher.identity.classes), teacher.identity.weights) == (10, "random")
    assert sorted(teacher.head_weights()) == ["shared_conv.bias", "shared_conv.weight"]


def test_its_maps_are_its_own_transposed(teacher: Mmdet3dTeacher) -> None:
    clouds = [cloud(0), cloud(1, 900)]
    output = teacher([teacher.prepare(TeacherInput.of_points(points)) for points in clouds])
    with torch.inference_mode():
        (neck,) = teacher.network.extract_feat({"points": list(map(torch.from_numpy, clouds))}, [{}, {}])
    assert neck.shape == (2, 48, 40, 30)
    assert torch.equal(output.layers["head"], neck.transpose(2, 3))
    assert output.heatmap is None and output.head_maps == {}
    for points, mask in zip(clouds, output.canvas_mask, strict=True):
        cells = np.floor((points[:, :2] + [16, 12]) / 0.4).astype(int)
        inside = ((cells >= 0) & (cells < [80, 60])).all(axis=1)
        expected = np.zeros((60, 80), bool)
        expected[cells[inside, 1], cells[inside, 0]] = True
        assert (mask.numpy() ^ expected).sum() <= 1  # a point on the edge of two cells


def test_a_point_lies_where_the_grids_say(teacher: Mmdet3dTeacher) -> None:
    point = np.array([[10.1, -5.3, 0, 200, 0]], np.float32)
    clouds = (np.array([[-12, 9, 0, 9, 0]], np.float32), point)
    without, with_point = (
        teacher([teacher.prepare(TeacherInput.of_points(np.concatenate(c)))]) for c in (clouds[:1], clouds)
    )
    row, column = int((-5.3 + 12) / 0.4), int((10.1 + 16) / 0.4)
    assert (with_point.canvas_mask ^ without.canvas_mask)[0].nonzero().tolist() == [[row, column]]
    for name, layer in with_point.layers.items():
        change = (layer - without.layers[name]).abs().sum(dim=1)[0].numpy()
        rows, columns = np.nonzero(change > 0.2 * change.max())
        centre = np.average(np.stack([columns, rows]), axis=1, weights=change[rows, columns]) + 0.5
        at_m = teacher.layer_grids[name].to_metres(centre)
        np.testing.assert_allclose(at_m, [10.1, -5.3], atol=1.2 * teacher.layer_grids[name].cell_m[0])


def test_a_frame_without_points_in_range_is_refused(teacher: Mmdet3dTeacher) -> None:
    with pytest.raises(TeacherError, match=r"no point of the frame .*got 1 points; expected some .*\[-16\.0, -12\.0"):
        teacher.prepare(TeacherInput.of_points(np.array([[0, 12.5, 0, 1, 0]], np.float32)))


def test_its_store_has_layers_and_canvas_alone(teacher: Mmdet3dTeacher, made_frames: Frames, tmp_path: Path) -> None:
    layers = {"head": CodecSpec(), "backbone1": CodecSpec()}
    dump(DumpConfig(teacher=OWN_VOXELS, layers=layers, workers=1), made_frames, teacher, tmp_path / "a.zarr")
    cache = TeacherCache(tmp_path / "a.zarr")
    assert (cache.spec.heatmap, cache.spec.head_maps) == ("none", {})
    assert not (tmp_path / "a.zarr" / "heatmap").exists()
    output = teacher([teacher.prepare(TeacherInput.of_points(load_points(f, teacher.points))) for f in made_frames])
    sample = cache[made_frames.tokens[0]]
    expected = encode(output.layers["head"], CodecSpec()).decode()[0]
    assert torch.equal(sample.features["head"].decode()[0], expected)
    assert torch.equal(sample.canvas_mask[0], output.canvas_mask[0])


def test_its_checkpoint_loads(teacher: Mmdet3dTeacher, tmp_path: Path) -> None:
    torch.save({"state_dict": teacher.network.state_dict()}, tmp_path / "w.pth")
    assert (
        load_teacher(OWN_VOXELS, tmp_path / "w.pth", random_seed=1).identity.weights_sha256
        == teacher.identity.weights_sha256
    )


IMAGES = {
    "img_backbone": "img_backbone=dict(type='mmdet.ResNet', depth=18)",
    "vtransform": "vtransform=dict(type='DepthLSSTransform')",
    "fusion_layer": "fusion_layer=dict(type='ConvFuser', in_channels=[80, 256], out_channels=256)",
}


@pytest.mark.parametrize("part", IMAGES)
def test_a_camera_branch_is_not_left_out_in_silence(part: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(f"_base_ = [{OWN_VOXELS!r}]\nmodel = dict({IMAGES[part]})")
    with pytest.raises(TeacherError, match=rf"fuses images with points, .*got OwnVoxels with {part}\. Choose its"):
        load_teacher(str(tmp_path / "config.py"), None)


def test_an_unknown_numbering_of_voxels_is_refused(tmp_path: Path) -> None:
    change = "model = dict(data_preprocessor=dict(voxelize_cfg=dict(numbered_by='zxy')))"
    (tmp_path / "config.py").write_text(f"_base_ = [{OWN_VOXELS!r}]\n{change}")
    with pytest.raises(
        TeacherError, match=r"unknown order .*pts_voxel_layer\); got \[0, 1, 2\] for a point .*expected z, y, x or x"
    ):
        load_teacher(str(tmp_path / "config.py"), None)


def test_another_canvas_along_x_is_refused(teacher: Mmdet3dTeacher) -> None:
    """The canvas has 60 rows along y and 80 columns along x."""
    canvas = teacher.canvas_grid
    detector = SimpleNamespace(pts_middle_encoder=SimpleNamespace(sparse_shape=[80, 60, 41]))
    require_consistent(detector, canvas, True, "mine")
    with pytest.raises(TeacherError, match=r"sparse_shape\[1:\]\); got \(60, 41\); expected \(60, 80\)"):
        require_consistent(detector, canvas, False, "mine")
    detector.pts_middle_encoder.sparse_shape = [60, 80, 41]
    with pytest.raises(TeacherError, match=r"sparse_shape\[:2\]\); got \(60, 80\); expected \(80, 60\)"):
        require_consistent(detector, canvas, True, "mine")


def test_a_centre_head_along_x_is_refused(teacher: Mmdet3dTeacher) -> None:
    with pytest.raises(TeacherError, match=r"CenterHead takes rows for y, and the rows of .*run along x"):
        require_decodable(teacher.network, teacher.canvas_grid, (30, 40), True, "mine")


def test_on_the_cpu_mmcvs_operator_gives_the_layers_voxels(teacher: Mmdet3dTeacher) -> None:
    wrapped = teacher.network.pts_voxel_layer
    assert isinstance(wrapped, CpuVoxels)
    points = torch.from_numpy(cloud(2))
    for ours, theirs in zip(wrapped(points), wrapped.layer(points), strict=True):
        assert torch.equal(ours, theirs)


# With mmdet3d's projects on the path: a clone of mmdetection3d, whose operators are built


def test_the_projects_lidar_detector_is_a_teacher_and_its_fusion_is_refused() -> None:
    pytest.importorskip("spconv", reason="spconv is not installed (make setup WITH=voxel)")
    projects = pytest.importorskip("projects.BEVFusion.bevfusion", reason="mmdet3d's projects are not on the path")
    configs = Path(projects.__file__).parents[1] / "configs"
    name = "bevfusion_{}_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
    teacher = load_teacher(str(configs / name.format("lidar")), None)
    shapes = {name: grid.shape for name, grid in teacher.layer_grids.items()}
    assert shapes == {"head": (180, 180), "backbone0": (180, 180), "backbone1": (90, 90), "middle": (180, 180)}
    assert (teacher.head_channels, teacher.has_heatmap, teacher.along_x) == (512, False, True)
    points = np.array([[30.1, -21.3, -1, 200, 0], [-40, 9, 0, 9, 0]], np.float32)
    alone, both = (teacher([teacher.prepare(TeacherInput.of_points(p))]) for p in (points[1:], points))
    assert (both.canvas_mask ^ alone.canvas_mask)[0].nonzero().tolist() == [[436, 1121]]
    change = (both.layers["middle"] - alone.layers["middle"]).abs().sum(dim=1)[0]
    largest = (change > 0.2 * change.max()).nonzero().float().mean(dim=0)
    np.testing.assert_allclose(largest, [436 / 8, 1121 / 8], atol=1.5)
    with pytest.raises(TeacherError, match="fuses images with points"):
        load_teacher(str(configs / name.format("lidar-cam")), None)
