"""mmdet3d 1.4 and mmengine: a small CenterPoint learns from the store of a larger one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.dumping.run import dump
from cache.geometry.views import PUBLIC_AUGMENT, ViewsConfig, bev_matrix
from cache.nuscenes.frames import Frames
from cache.spec import CLASSES, CodecSpec, PointPipeline
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_config import mmdet3d_scope, read_config
from cache.teacher.training import _TrainingFrames, _VoxelsOnCpu
from tests.factories.stores import make_config

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

from bevcache.mmdet3d import _boxes, bevdet_matrix, export_checkpoint, mmdet3d_matrix
from bevcache.reader import BevCacheError
from mmengine.registry import MODELS, TRANSFORMS
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion
from torch.utils.data import ConcatDataset, DataLoader

DEMO = Path(__file__).parents[3] / "configs" / "demo" / "teacher_model.py"
GRID = {"x_range_m": [-12.8, 12.8], "y_range_m": [-12.8, 12.8], "cell_m": [0.8, 0.8]}
PARTS = ("background", "false_positive", "foreground", "spatial")
DISTILL = {
    "pairs": [
        {"student": "head", "teacher": "head", "student_adapter": "1x1conv"},
        {"student": "backbone1", "teacher": "backbone1", "student_adapter": "3layer"},
    ],
    "terms": [
        {
            "kind": "fgd",
            "fg_weight": 6e-3,
            "bg_weight": 4e-2,
            "spatial_attention": "teacher_student",
            "channel_attention": False,
            "false_positives": ["teacher+teacher_selected_student", "none"],
            "fp_weight": 6e-2,
        }
    ],
}


@pytest.fixture(scope="module")
def store(made_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's CenterPoint over the made-up frames, as they are and with y negated."""
    layers = {"head": CodecSpec(), "backbone1": CodecSpec()}
    config = make_config(layers=layers, views=ViewsConfig(reflections=2), samples_per_shard=1, batch_size=1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.zarr"
    dump(config, made_frames, load_teacher(str(DEMO), None), path)
    return path


def student_config() -> Any:
    """The demo's CenterPoint with half the channels."""
    config = read_config(str(DEMO))
    config.model.pts_neck.out_channels = [16, 16, 16]
    config.model.pts_bbox_head.in_channels = 48
    config.model.pts_backbone.out_channels = [16, 32, 64]
    config.model.pts_neck.in_channels = [16, 32, 64]
    return config


def distilled(store: Path, detector: Any, **changes: Any) -> dict[str, Any]:
    """The configuration of a `Distilled` student."""
    coarse = GRID | {"cell_m": [1.6, 1.6]}
    arguments: dict[str, Any] = {
        "type": "Distilled",
        "detector": detector,
        "store": str(store),
        "distill": DISTILL,
        "taps": {"head": "pts_neck:0", "backbone1": "pts_backbone:1"},
        "layers": {"head": {"channels": 48, "grid": GRID}, "backbone1": {"channels": 32, "grid": coarse}},
        "classes": CLASSES,
    }
    return arguments | changes


def build(config: dict[str, Any]) -> Any:
    """A model on the CPU, which voxelises in a way that needs no CUDA operator."""
    model = MODELS.build(config)
    model.data_preprocessor.voxel_layer = _VoxelsOnCpu(model.data_preprocessor.voxel_layer)
    return model


class TokenFrames(_TrainingFrames):
    """Frames as mmdet3d's NuScenesDataset gives them to its pipeline: with their token."""

    def __getitem__(self, index: int) -> dict:
        augment, self.augment = self.augment, lambda sample: sample
        sample, self.augment = super().__getitem__(index), augment
        return augment(sample | {"token": self.frames[index].token})


def loader(config: Any, frames: Frames, store: Path, repeats: int = 1) -> DataLoader:
    """Batches of two through the configuration's own augmentation and our step."""
    from mmengine.dataset import Compose, pseudo_collate

    steps = [step for step in config.train_pipeline if not step.type.startswith("Load")]
    ours = {"type": "LoadTeacherFeatures", "store": str(store), "pack": steps.pop()}
    dataset = TokenFrames(frames, PointPipeline(past_sweeps=1), list(CLASSES), Compose([*steps, ours]))
    return DataLoader(ConcatDataset([dataset] * repeats), batch_size=2, shuffle=True, collate_fn=pseudo_collate)


@pytest.mark.slow
def test_a_small_centerpoint_learns_from_a_larger_ones_store(store: Path, made_frames: Frames, tmp_path: Path) -> None:
    from mmengine.runner import Runner

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (mmdet3d's augmentation)
    config = student_config()
    with mmdet3d_scope():
        model = build(distilled(store, config.model))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        runner = Runner(
            model=model,
            work_dir=str(tmp_path),
            train_dataloader=loader(config, made_frames, store, repeats=24),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 2e-3}},
            default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
            custom_hooks=[{"type": "DistillEpochHook"}],
            default_scope="mmdet3d",
            experiment_name=tmp_path.name,
            log_level="WARNING",
        )
        runner.train()
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    names = [f"loss_distill/fgd/{pair}/{part}" for pair in ("head", "backbone1") for part in PARTS]
    names.remove("loss_distill/fgd/backbone1/false_positive")
    assert {name for name in steps[0] if "distill" in name} == set(names)
    for step in steps:  # mmengine sums what is called a loss: the detector's own, and these.
        assert step["loss"] == pytest.approx(sum(v for k, v in step.items() if "loss" in k and k != "loss"), rel=1e-4)
    distances = [sum(step[name] for name in names) for step in steps]
    assert len(distances) == 24
    assert np.mean(distances[-4:]) < 0.8 * np.mean(distances[:4])
    after = model.state_dict()
    adapters = [name for name in after if name.startswith("bevcache.") and name.endswith("weight")]
    assert len(adapters) >= 6
    assert all((after[name] != before[name]).any() for name in adapters)

    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    assert set(adapters) < set(checkpoint["state_dict"])
    export_checkpoint(str(tmp_path / "epoch_1.pth"), str(tmp_path / "student.pth"))
    exported = torch.load(tmp_path / "student.pth", weights_only=False)
    with mmdet3d_scope():
        bare = MODELS.build(student_config().model)
    bare.load_state_dict(exported["state_dict"])  # strictly: no name is missing, and none is left over
    assert exported["meta"]["epoch"] == 1
    assert all(torch.equal(tensor, after[name]) for name, tensor in bare.state_dict().items())


def test_it_tests_as_the_detector_does(store: Path, made_frames: Frames) -> None:
    """An instance of its class with the same maps; no hook stays on its modules."""
    config = student_config()
    with mmdet3d_scope():
        bare, model = build(config.model), build(distilled(store, student_config().model))
        batch = model.data_preprocessor(next(iter(loader(config, made_frames, store))), training=True)
        model.train()(**batch, mode="loss")
        assert isinstance(model, type(bare))
        assert not any(module._forward_hooks for module in model.modules())
        assert model.load_state_dict(bare.state_dict(), strict=False).unexpected_keys == []
        metas = [sample.metainfo for sample in batch["data_samples"]]
        maps = [each.eval().extract_feat(batch["inputs"], metas)[1][0] for each in (bare, model)]
    assert torch.equal(*maps)


def test_bevdets_matrix_is_where_its_points_go() -> None:
    """A point of the LiDAR sweep, through global coordinates into the first camera's ego vehicle, then by bda_mat."""
    rng = np.random.default_rng(0)

    def pose(name: str) -> dict[str, Any]:
        return {
            f"{name}_rotation": list(Quaternion.random().elements),
            f"{name}_translation": list(rng.normal(0, 9, 3)),
        }

    info = pose("lidar2ego") | pose("ego2global")
    lidar_to_ego, ego_to_global = (
        transform_matrix(info[f"{name}_translation"], Quaternion(info[f"{name}_rotation"]))
        for name in ("lidar2ego", "ego2global")
    )
    key_to_global = transform_matrix(rng.normal(0, 9, 3), Quaternion.random())
    others = [torch.zeros(12, 3, 3)] * 5
    point = np.append(rng.normal(0, 20, 3), 1)
    in_ego = np.linalg.inv(key_to_global) @ ego_to_global @ lidar_to_ego @ point
    for bda in (bev_matrix(PUBLIC_AUGMENT, rng), bev_matrix(PUBLIC_AUGMENT, rng)[:3, :3]):
        poses = torch.from_numpy(np.stack([key_to_global] * 12)).float()
        inputs = (*others[:2], poses, *others[2:], torch.from_numpy(bda).float())
        augmentation, frame = bevdet_matrix({"img_inputs": inputs, "curr": info})
        np.testing.assert_allclose((augmentation @ frame @ point)[:3], bda[:3, :3] @ in_ego[:3], atol=1e-4)
        with pytest.raises(BevCacheError, match=r"not mmdet3d's augmentation.*Set matrix: bevdet"):
            mmdet3d_matrix({"img_inputs": inputs})
    with pytest.raises(BevCacheError, match=r"not ego2globals .*got \(3, 3\)"):
        bevdet_matrix({"img_inputs": (*others, None, torch.eye(3)), "curr": info})


def test_the_recorded_augmentation_is_what_moved_the_points(made_frames: Frames) -> None:
    from mmdet3d.structures import LiDARPoints

    np.random.seed(3)  # noqa: NPY002
    with mmdet3d_scope():
        steps = [
            TRANSFORMS.build(step)
            for step in (
                {"type": "GlobalRotScaleTrans", "rot_range": [-0.7, 0.7], "translation_std": [1.0, 2.0, 0.5]},
                {"type": "RandomFlip3D", "sync_2d": False, "flip_ratio_bev_horizontal": 0.5,
                 "flip_ratio_bev_vertical": 0.5},
            )
        ]  # fmt: skip
    flips = set()
    for _ in range(8):
        points = torch.rand(5, 3) * 20 - 10
        results = {"points": LiDARPoints(points.clone(), points_dim=3)}
        for step in steps:
            results = step(results)
        matrix, frame = mmdet3d_matrix(results)
        moved = torch.cat([points, torch.ones(5, 1)], 1).double() @ torch.from_numpy(matrix).T
        torch.testing.assert_close(results["points"].tensor.double(), moved[:, :3], atol=1e-4, rtol=0)
        assert np.array_equal(frame, np.eye(4))
        flips.add((results["pcd_horizontal_flip"], results["pcd_vertical_flip"]))
    assert len(flips) == 4


def test_the_nearest_view_is_read(store: Path, made_frames: Frames) -> None:
    with mmdet3d_scope():
        step = TRANSFORMS.build({"type": "LoadTeacherFeatures", "store": str(store), "layers": ["head"]})
    flipped = {"token": made_frames.tokens[0], "transformation_3d_flow": ["HF"], "pcd_horizontal_flip": True}
    (teacher,) = step(flipped)["teacher"]
    assert set(teacher) == {
        "features/head", "features/head_scale", "heatmap", "canvas_mask", "view_matrix", "to_teacher"
    }  # fmt: skip
    assert torch.equal(teacher["view_matrix"], torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])))
    assert torch.equal(teacher["to_teacher"], torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"taps": {"head": "pts_neck", "backbone1": "pts_backbone:1"}},
            r"no feature map \(head\); got list; .*Name a part",
        ),
        ({"taps": {"head": "neck:0"}}, r"no such module \(tap head\); got neck; expected .*pts_neck"),
        ({"distill": DISTILL | {"two_stage_epoch": 2}}, "epoch is not known.*DistillEpochHook"),
    ],
)
def test_what_is_refused_at_the_first_step(store: Path, made_frames: Frames, changes: Any, message: str) -> None:
    config = student_config()
    with mmdet3d_scope():
        model = build(distilled(store, config.model, **changes))
        batch = model.data_preprocessor(next(iter(loader(config, made_frames, store))), training=True)
        with pytest.raises(BevCacheError, match=message):
            model(**batch, mode="loss")


def test_a_pipeline_without_teacher_is_refused(store: Path, made_frames: Frames) -> None:
    config = student_config()
    with mmdet3d_scope():
        model = build(distilled(store, config.model))
        batch = model.data_preprocessor(next(iter(loader(config, made_frames, store))), training=True)
        for sample in batch["data_samples"]:
            del sample.teacher
        with pytest.raises(BevCacheError, match=r"no teacher\. Add LoadTeacherFeatures"):
            model(**batch, mode="loss")


def test_boxes_of_mmdet3d_0() -> None:
    """There, yaw 0 looks along -y and grows clockwise, and the width comes first."""
    car_along_x = torch.tensor([[1.0, 2.0, 3.0, 1.9, 4.5, 1.6, -np.pi / 2, 5.0, 6.0]])
    expected = torch.tensor([[1.0, 2.0, 3.0, 4.5, 1.9, 1.6, 0.0, 5.0, 6.0]])
    torch.testing.assert_close(_boxes(car_along_x, "mmdet3d-0.x"), expected)
    assert _boxes(expected, "mmdet3d-1.x") is expected
