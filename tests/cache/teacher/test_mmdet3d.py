"""The mmdet3d teacher: its maps are mmdet3d's own, lie where the grids say, and stay as they are."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.geometry.views import ViewsConfig, transform_boxes
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.spec import CodecSpec, PointPipeline
from cache.store.codec import encode
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from tests.factories.mmdet3d_inputs import mmdet3d_batch

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

DEMO = str(Path(__file__).parents[3] / "configs" / "demo" / "teacher_model.py")
PILLAR02 = "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d"
CANVAS = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.4, 0.4))


@pytest.fixture(scope="module")
def teacher() -> Mmdet3dTeacher:
    """The demo's small detector with random weights."""
    return load_teacher(DEMO, None)


@pytest.fixture(scope="module")
def pillar02() -> Mmdet3dTeacher:
    """The model zoo's pillar CenterPoint with random weights."""
    return load_teacher(PILLAR02, None)


def cloud(seed: int, count: int = 500) -> np.ndarray:
    """Random points within the demo's range."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-12, -12, -3, 0, 0], [12, 12, 1, 255, 0.5], (count, 5)).astype(np.float32)


def test_the_demo_teacher_describes_itself(teacher: Mmdet3dTeacher) -> None:
    assert teacher.points == PointPipeline(past_sweeps=3, pad_empty_sweeps=True, remove_close_m=1.0)
    assert teacher.canvas_grid == CANVAS
    shapes = {name: grid.shape for name, grid in teacher.layer_grids.items()}
    assert shapes == {"head": (32, 32), "backbone0": (32, 32), "backbone1": (16, 16), "backbone2": (8, 8)}
    assert teacher.layer_grids["head"].cell_m == pytest.approx((0.8, 0.8))
    assert teacher.heatmap_grid.shape == (32, 32)
    identity = teacher.identity
    assert (identity.name, identity.weights) == ("teacher_model", "random")
    assert identity.tasks[1] == ("truck", "construction_vehicle")
    assert len(identity.classes) == 10
    assert identity.decoding.post_center_range == (-16, -16, -10, 16, 16, 10)
    assert (identity.decoding.nms_type, identity.decoding.score_threshold) == ("circle", 0.05)


def test_output_shapes(teacher: Mmdet3dTeacher) -> None:
    output = teacher(
        [teacher.prepare(TeacherInput.of_points(cloud(0))), teacher.prepare(TeacherInput.of_points(cloud(1)))]
    )
    assert {name: tuple(layer.shape) for name, layer in output.layers.items()} == {
        "head": (2, 96, 32, 32),
        "backbone0": (2, 32, 32, 32),
        "backbone1": (2, 64, 16, 16),
        "backbone2": (2, 128, 8, 8),
    }
    assert output.heatmap.shape == (2, 10, 32, 32)
    assert 0 <= output.heatmap.min() <= output.heatmap.max() <= 1
    assert {name: tuple(maps.shape) for name, maps in output.head_maps.items()} == {
        name: (2, 6, channels, 32, 32)
        for name, channels in {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}.items()
    }
    assert output.canvas_mask.shape == (2, 64, 64)


def test_a_point_lies_where_the_grids_say(teacher: Mmdet3dTeacher) -> None:
    """Row = y, column = x, in the canvas and in every layer; the other point is only there to have a canvas without."""
    other = np.array([[-12, -12, 0, 9, 0]], np.float32)
    point = np.array([[10.1, -5.3, 0, 200, 0]], np.float32)
    row, column = int((-5.3 + 12.8) / 0.4), int((10.1 + 12.8) / 0.4)
    without, with_point = (
        teacher([teacher.prepare(TeacherInput.of_points(p))]) for p in (other, np.concatenate([other, point]))
    )
    assert (with_point.canvas_mask ^ without.canvas_mask)[0].nonzero().tolist() == [[row, column]]
    for name, layer in with_point.layers.items():
        change = (layer - without.layers[name]).abs().sum(dim=1)[0].numpy()
        rows, columns = np.nonzero(change > 0.2 * change.max())
        centre = np.average(np.stack([columns, rows]), axis=1, weights=change[rows, columns]) + 0.5
        at_m = teacher.layer_grids[name].to_metres(centre)
        np.testing.assert_allclose(at_m, [10.1, -5.3], atol=1.2 * teacher.layer_grids[name].cell_m[0])


def test_frames_of_a_batch_do_not_touch_each_other(teacher: Mmdet3dTeacher) -> None:
    prepared = [
        teacher.prepare(TeacherInput.of_points(cloud(seed, count))) for seed, count in ((0, 500), (1, 3), (2, 900))
    ]
    together = teacher(prepared)
    for index, voxels in enumerate(prepared):
        alone = teacher([voxels])
        for name, layer in alone.layers.items():
            torch.testing.assert_close(together.layers[name][index], layer[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.heatmap[index], alone.heatmap[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.canvas_mask[index], alone.canvas_mask[0])


def test_the_teacher_stays_in_eval_mode(teacher: Mmdet3dTeacher) -> None:
    owner = torch.nn.ModuleList([teacher])
    owner.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    output = teacher([teacher.prepare(TeacherInput.of_points(cloud(3)))])
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert output.layers["head"].is_inference()


def test_prepare_travels_to_workers_without_the_network(teacher: Mmdet3dTeacher) -> None:
    pickled = pickle.dumps(teacher.prepare)
    assert len(pickled) < 10_000
    clouds = [TeacherInput.of_points(cloud(seed)) for seed in range(3)]
    loader = DataLoader(clouds, batch_size=3, collate_fn=_EachOf(pickle.loads(pickled)), num_workers=1)
    (prepared,) = loader
    here = teacher([teacher.prepare(points) for points in clouds])
    assert torch.equal(teacher(prepared).heatmap, here.heatmap)


class _EachOf:
    """Apply a function to each item of a batch."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, batch: list) -> list:
        return [self.function(item) for item in batch]


def test_a_frame_without_points_in_range_is_refused(teacher: Mmdet3dTeacher) -> None:
    with pytest.raises(TeacherError, match=r"no point of the frame lies within the teacher's range; got 1 points; exp"):
        teacher.prepare(TeacherInput.of_points(np.array([[80, 0, 0, 1, 0]], np.float32)))
    with pytest.raises(TeacherError, match="got 0 points"):
        teacher.prepare(TeacherInput.of_points(np.zeros((0, 5), np.float32)))


def test_head_weights_are_the_heads(teacher: Mmdet3dTeacher) -> None:
    weights = teacher.head_weights()
    assert weights["shared_conv.conv.weight"].shape[1] == 96
    assert weights["task_heads.5.heatmap.1.bias"].tolist() == pytest.approx([-2.19, -2.19])
    assert all(torch.equal(weights[name], own) for name, own in teacher.network.pts_bbox_head.state_dict().items())


def test_random_weights_follow_their_seed(teacher: Mmdet3dTeacher) -> None:
    state = torch.random.get_rng_state()
    same, other = load_teacher(DEMO, None, random_seed=0), load_teacher(DEMO, None, random_seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same.identity == teacher.identity
    assert other.identity.weights_sha256 != teacher.identity.weights_sha256
    assert other.identity.config_sha256 == teacher.identity.config_sha256


def test_a_checkpoint_decides_the_maps(teacher: Mmdet3dTeacher, tmp_path: Path) -> None:
    torch.save({"state_dict": teacher.network.state_dict()}, tmp_path / "w.pth")
    loaded = load_teacher(DEMO, tmp_path / "w.pth", random_seed=7)
    assert loaded.identity.weights == "checkpoint"
    assert loaded.identity.weights_sha256 == teacher.identity.weights_sha256
    points = cloud(4)
    ours, theirs = (t([t.prepare(TeacherInput.of_points(points))]).heatmap for t in (loaded, teacher))
    assert torch.equal(ours, theirs)


def test_the_configuration_hash_sees_the_model_alone(teacher: Mmdet3dTeacher, tmp_path: Path) -> None:
    for name, change in {
        "schedule": "epochs = 99",
        "model": "model = dict(pts_bbox_head=dict(norm_bbox=False))",
    }.items():
        (tmp_path / f"{name}.py").write_text(f"_base_ = [{DEMO!r}]\n{change}\n")
    schedule, model = (load_teacher(str(tmp_path / f"{name}.py"), None).identity for name in ("schedule", "model"))
    assert schedule.config_sha256 == teacher.identity.config_sha256
    assert model.config_sha256 != teacher.identity.config_sha256
    assert (model.decoding.log_dimensions, schedule.decoding.log_dimensions) == (False, True)


def test_a_flipped_view_in_the_store(teacher: Mmdet3dTeacher, made_frames: Frames, tmp_path: Path) -> None:
    """The store holds the teacher's own answer to mirrored points, and the moved boxes lie on them."""
    config = DumpConfig(teacher=DEMO, layers={"head": CodecSpec()}, views=ViewsConfig(reflections=2), workers=0)
    dump(config, made_frames, teacher, tmp_path / "teacher.zarr")
    cache = TeacherCache(tmp_path / "teacher.zarr")
    for frame in made_frames:
        sample = cache[frame.token]
        mirrored = load_points(frame, teacher.points) * np.array([1, -1, 1, 1, 1], np.float32)
        output = teacher([teacher.prepare(TeacherInput.of_points(mirrored))])
        expected = encode(output.layers["head"], CodecSpec()).decode()[0]
        torch.testing.assert_close(
            sample.features["head"].decode()[1], expected, rtol=0, atol=0.02
        )  # a step of the code
        assert torch.equal(sample.canvas_mask[1], output.canvas_mask[0])
        differing = (sample.canvas_mask[1] ^ sample.canvas_mask[0].flip(-2)).sum() / sample.canvas_mask[0].sum()
        assert differing < 0.01  # points on the edge of two pillars
        boxes = [transform_boxes(frame.boxes, matrix) for matrix in sample.view_matrix.numpy()]
        held = [[occupied(sample.canvas_mask[view], box) for box in boxes[view]] for view in (0, 1)]
        assert held[0] == pytest.approx(held[1], abs=1)
        assert sum(held[0]) > 10


def occupied(mask: torch.Tensor, box: np.ndarray) -> int:
    """Occupied pillars whose centres lie in a box, seen from above."""
    offset = CANVAS.centers_m() - box[:2]
    along = offset @ [np.cos(box[6]), np.sin(box[6])]
    across = offset @ [-np.sin(box[6]), np.cos(box[6])]
    return int(mask.numpy()[(np.abs(along) < box[3] / 2) & (np.abs(across) < box[4] / 2)].sum())


# Against mmdet3d itself, on a real frame


def test_the_model_zoo_at_full_size(pillar02: Mmdet3dTeacher, real_frames: Frames) -> None:
    assert pillar02.points == PointPipeline(past_sweeps=9, pad_empty_sweeps=True, remove_close_m=1.0)
    assert pillar02.canvas_grid.shape == (512, 512)
    prepared = pillar02.prepare(TeacherInput.of_points(load_points(real_frames[0], pillar02.points)))
    output = pillar02([prepared])
    assert {name: tuple(layer.shape) for name, layer in output.layers.items()} == {
        "head": (1, 384, 128, 128),
        "backbone0": (1, 64, 256, 256),
        "backbone1": (1, 128, 128, 128),
        "backbone2": (1, 256, 64, 64),
    }
    assert output.canvas_mask.sum() == len(prepared["voxels"]) == 7896
    assert pillar02.heatmap_grid.cell_m == pytest.approx((0.8, 0.8))


def test_maps_and_boxes_are_those_of_mmdet3d(pillar02: Mmdet3dTeacher, real_frames: Frames) -> None:
    """The configuration's own test pipeline, preprocessor and `predict`, from the same file."""
    batch = mmdet3d_batch(real_frames, PILLAR02)
    ours = pillar02([pillar02.prepare(TeacherInput.of_points(load_points(real_frames[0], pillar02.points)))])
    network = pillar02.network
    with torch.inference_mode():
        inputs = network.data_preprocessor(batch, False)
        _, (neck,) = network.extract_feat(inputs["inputs"], [{}])
        (sample,) = network.predict(inputs["inputs"], inputs["data_samples"])
    torch.testing.assert_close(ours.layers["head"], neck, rtol=0, atol=0)
    found = sample.pred_instances_3d
    best = int(found.scores_3d.argmax())
    box, label = found.bboxes_3d.tensor[best].numpy(), int(found.labels_3d[best])
    channel, row, column = np.unravel_index(int(ours.heatmap.argmax()), ours.heatmap.shape[1:])
    task = next(i for i, names in enumerate(pillar02.identity.tasks) if pillar02.identity.classes[channel] in names)
    maps = {name: m[0, task, :, row, column].numpy() for name, m in ours.head_maps.items()}
    x, y = pillar02.heatmap_grid.to_metres(np.array([column, row]) + maps["reg"])
    size = np.exp(maps["dim"])
    z, yaw_rad = maps["height"][0] - size[2] / 2, np.arctan2(*maps["rot"])
    assert label == channel
    np.testing.assert_allclose(box, [x, y, z, *size, yaw_rad, *maps["vel"]], rtol=1e-4, atol=1e-4)
    assert found.scores_3d[best] == ours.heatmap.max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_sees_what_the_cpu_sees(teacher: Mmdet3dTeacher) -> None:
    on_gpu = load_teacher(DEMO, None, "cuda")
    prepared = [teacher.prepare(TeacherInput.of_points(cloud(5)))]
    torch.testing.assert_close(on_gpu(prepared).heatmap.cpu(), teacher(prepared).heatmap, rtol=1e-2, atol=1e-3)


# What is refused


def refused(config: str | Path, match: str) -> None:
    with pytest.raises(TeacherError, match=match):
        load_teacher(str(config), None)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    refused(
        "centerpoint_pillar02_second_secfpn_nus", rf"no such mmdet3d configuration; got .*such as .*{PILLAR02[:30]}"
    )
    refused("configs/mine.py", r"got configs/mine\.py; expected a \.py file, or a name")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = dict(", "cannot be read .*got SyntaxError"),
        ("1 / 0", "cannot be read .*got ZeroDivisionError"),
        ("_base_ = ['./nowhere.py']", "cannot be read .*got .*nowhere"),
        ("custom_imports = dict(imports=['projects.No'])", "cannot be imported .*No module named 'projects.*a clone"),
        ("lr = 1", "describes no model .*got lr"),
        ("model = dict(type='CenterPiont')", "cannot be built .*got KeyError: .*CenterPiont"),
        ("model = dict(type='CenterPoint', colour=3)", "cannot be built .*colour"),
        (f"_base_ = [{DEMO!r}]\nmodel = dict(pts_neck=None)", "no backbone, neck .*got CenterPoint with .*SECOND"),
        (f"_base_ = [{DEMO!r}]\nmodel = dict(test_cfg=None)", "does not say how boxes are decoded"),
        (
            f"_base_ = [{DEMO!r}]\nmodel = dict(pts_bbox_head=dict(tasks=[dict(num_class=1, class_names=['Car'])]))",
            "knows classes that nuScenes.* does not .*got Car; expected some of car",
        ),
        (
            f"_base_ = [{DEMO!r}]\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='Pack3DDetInputs')]))",
            r"points are not x, y, z, intensity and lag .*got no LoadPointsFromMultiSweeps among \['Pack3DDetInputs'\]",
        ),
        (
            f"_base_ = [{DEMO!r}]\ntest_dataloader = dict(dataset=dict(pipeline=["
            "dict(type='LoadPointsFromMultiSweeps')]))",
            r"got use_dim=\[0, 1, 2, 4\]",
        ),
    ],
)  # fmt: skip
def test_configurations_that_cannot_teach(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.py").write_text(text)
    refused(tmp_path / "config.py", said)


def test_other_detectors_are_described() -> None:
    refused(
        "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car", "got VoxelNet with .*bbox_head: Anchor3DHead.*expected pts_"
    )


def test_sparse_convolutions_need_spconv() -> None:
    if "spconv" in sys.modules:
        pytest.skip("spconv is installed")
    refused(
        PILLAR02.replace("pillar02", "voxel0075"), r"spconv is not installed .*got pts_middle_encoder: SparseEncoder"
    )


def test_without_mmdet3d_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet3d.models", None)
    refused(DEMO, r"mmdet3d cannot be imported; got \w+Error: .*Run `make setup`")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(TeacherError, match=r"cannot run on this device \(teacher_model\); got cuda:99: \w+"):
        load_teacher(DEMO, None, "cuda:99")
