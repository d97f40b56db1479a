"""Training a teacher: frames reach mmdet3d as they are, augmentation keeps boxes on their points, and it learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cli
from cache.errors import TeacherError
from cache.nuscenes.frame import Frame, Sweep
from cache.nuscenes.frames import Frames
from cache.spec import CLASSES, PointPipeline
from cache.teacher.checkpoint import weights_sha256
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_config import mmdet3d_scope, read_config
from cache.teacher.mmdet3d_detector import build_detector
from cache.teacher.training import CHECKPOINT, _loader, _TrainingFrames, train_teacher
from tests.factories.tables import make_tables, write_tables

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

DEMO = Path(__file__).parents[3] / "configs" / "demo" / "teacher_model.py"


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    """Four frames of a cone and some cars: boxes full of points on an empty plain."""
    return [make_frame(tmp_path, seed) for seed in range(4)]


def make_frame(folder: Path, seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    boxes = np.zeros((5, 9), np.float32)
    boxes[:, 0], boxes[:, 1] = rng.permutation([-6, -3, 0, 3, 6]), rng.permutation([-6, -3, 0, 3, 6])
    boxes[:, 2:6], boxes[:, 6], boxes[:, 7:] = [-2, 4, 2, 1.5], rng.uniform(-3, 3, 5), rng.uniform(-3, 3, (5, 2))
    inside = rng.uniform(-0.5, 0.5, (5, 60, 3)).astype(np.float32)
    inside[:, 0], inside[:, 1] = 0, [0.5, 0, 0]  # The first two points of a box: its centre and its nose.
    points = np.concatenate([to_world(box, unit) for box, unit in zip(boxes, inside, strict=True)])
    path = folder / f"{seed}.bin"
    np.c_[points, np.full((len(points), 2), 9)].astype(np.float32).tofile(path)
    return Frame(
        token=str(seed),
        scene="s",
        timestamp_us=seed,
        sweeps=(Sweep(path=path, to_key=np.eye(4), lag_s=0.0),),
        cameras=(),
        boxes=boxes,
        labels=np.array([CLASSES.index("traffic_cone")] + [CLASSES.index("car")] * 4),
        lidar_to_ego=np.eye(4),
        ego_to_global=np.eye(4),
        previous=None,
    )


def to_world(box: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Points of the unit cube about 0 -> points of a box."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turned = (unit * box[3:6]) @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return turned + box[:3] + [0, 0, box[5] / 2]


@pytest.fixture
def small(tmp_path: Path) -> str:
    """The demo's configuration with one task of two classes, for a few quick epochs without sweeps."""
    path = tmp_path / "small.py"
    path.write_text(f"""
_base_ = [{str(DEMO)!r}]
model = dict(pts_bbox_head=dict(tasks=[dict(num_class=2, class_names=["pedestrian", "car"])]))
train_cfg = dict(max_epochs=3)
train_dataloader = dict(batch_size=2)
""")
    return str(path)


def nearest(marks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The distance of each mark to its nearest point."""
    return (marks[:, None] - points[None]).norm(dim=2).min(dim=1).values


def losses(out: Path) -> list[float]:
    (log,) = out.glob("*/vis_data/scalars.json")
    return [line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]


def test_frames_become_what_mmdet3d_trains_on(frames: list[Frame]) -> None:
    """A label counts in the head's order; boxes of classes that it does not know are left out."""
    dataset = _TrainingFrames(frames, PointPipeline(past_sweeps=0), ["pedestrian", "car"], lambda sample: sample)
    sample = dataset[1]
    assert len(dataset) == 4
    assert sample["gt_labels_3d"].tolist() == [1, 1, 1, 1]
    np.testing.assert_array_equal(sample["gt_bboxes_3d"].tensor.numpy(), frames[1].boxes[1:])
    assert sample["points"].tensor.shape == (300, 5)
    everything = _TrainingFrames(frames, PointPipeline(past_sweeps=0), CLASSES, lambda sample: sample)
    assert everything[1]["gt_labels_3d"].tolist() == frames[1].labels.tolist()


def test_augmentation_moves_boxes_with_their_points(frames: list[Frame]) -> None:
    """Wherever the flips, turns and scales take them, a box's centre and nose stay on the points that were there."""
    config = read_config(str(DEMO))
    detector = build_detector(config)
    with mmdet3d_scope():
        loader = _loader(config, frames, detector, seed=0)
    turned = set()
    for batch in (batch for _ in range(3) for batch in loader):
        for points, sample in zip(batch["inputs"]["points"], batch["data_samples"], strict=True):
            boxes = sample.gt_instances_3d.bboxes_3d
            assert len(boxes) == 5
            noses = torch.stack([boxes.yaw.cos(), boxes.yaw.sin(), 0 * boxes.yaw], dim=1) * boxes.dims[:, :1] / 2
            for marks in (boxes.gravity_center, boxes.gravity_center + noses):
                assert nearest(marks, points[:, :3]).max() < 1e-3
            turned.add(round(sample.pcd_rotation_angle, 3))
    assert len(turned) == 12


def test_training_learns_and_its_checkpoint_is_a_teacher(
    small: str, frames: list[Frame], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / "deep" / "out"
    checkpoint = train_teacher(small, frames, out)
    assert checkpoint == out / CHECKPOINT
    first, *_, last = losses(out)
    assert last < 0.8 * first
    teacher = load_teacher(small, checkpoint)
    assert teacher.identity.weights == "checkpoint"
    assert teacher.identity.weights_sha256 != load_teacher(small, None).identity.weights_sha256
    printed = "".join(capfd.readouterr())
    assert "Epoch(train)" in printed
    assert len(printed.splitlines()) < 20  # mmengine would list the machine, its hooks and every parameter.


def test_the_seed_decides_the_weights(small: str, frames: list[Frame], tmp_path: Path) -> None:
    with Path(small).open("a") as file:
        file.write("train_cfg = dict(max_epochs=1)\n")
    hashes = [
        weights_sha256(load_teacher(small, train_teacher(small, frames, tmp_path / name, seed=seed)).network)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_command_takes_a_lidar_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables()
    for record in tables["sensor"]:
        record["channel"] = {"LIDAR_TOP": "roof"}.get(record["channel"], record["channel"])
    tables["sensor"].append({"token": "other", "channel": "bumper", "modality": "lidar"})
    root = write_tables(tmp_path, tables, version="mine")
    given: list[Frames] = []
    monkeypatch.setattr("cache.teacher.training.train_teacher", lambda config, frames, out: given.append(frames))
    options = ["--data", str(root), "--version", "mine", "--split", "all", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(cli.app, ["train-teacher", "mine.py", *options, "--lidar", "roof"])
    assert outcome.exit_code == 0, outcome.output
    assert given[0].lidar == "roof"
    assert len(given[0][1].sweeps) == 3


def test_frames_list_the_sweeps_of_the_configuration(made_frames: Frames, tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        f"_base_ = [{str(DEMO)!r}]\n"
        "test_dataloader = dict(dataset=dict(pipeline=[\n"
        "    dict(type='LoadPointsFromMultiSweeps', sweeps_num=12, use_dim=[0, 1, 2, 3, 4])]))\n"
    )
    config = read_config(str(tmp_path / "c.py"))
    with mmdet3d_scope():
        dataset = _loader(config, made_frames, build_detector(config), seed=0).dataset
    assert (dataset.pipeline.past_sweeps, dataset.frames.max_sweeps) == (12, 12)


def test_a_configuration_without_training_is_refused(frames: list[Frame], tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(f"_base_ = [{str(DEMO)!r}]\ntrain_cfg = None\noptim_wrapper = None\n")
    with pytest.raises(TeacherError, match=r"describes no training .*c\.py\); expected train_cfg, optim_wrapper"):
        train_teacher(str(tmp_path / "c.py"), frames, tmp_path / "out")


def test_ground_truth_pasting_is_refused(frames: list[Frame], tmp_path: Path) -> None:
    name = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"
    with pytest.raises(TeacherError, match=r"pasting needs a database.*got ObjectSample\. Take the step out"):
        train_teacher(name, frames, tmp_path / "out")
