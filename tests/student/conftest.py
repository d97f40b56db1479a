"""A small LiDAR teacher and its store with views; two evaluations of the made-up world's ground truth;
a student that trains in seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.dumping.run import DumpConfig, dump
from cache.geometry.grid import BevGrid
from cache.geometry.views import ViewsConfig
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec, Decoding, PointPipeline, TeacherIdentity
from cache.teacher.base import TeacherOutput
from student.config.student import TASKS, HeadConfig, StudentConfig
from student.evaluation.evaluate import Metrics, evaluate
from student.evaluation.results import Results, read_results
from student.models.center_head import CenterHead, Detections

GRID = BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0), cell_m=(0.8, 0.8))
CHANNELS = 6


class TinyTeacher(nn.Module):
    """Counts of points, blurred, some channels of them, and a centre head with random weights; a `Teacher` in small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.head = CenterHead(CHANNELS, HeadConfig(shared_channels=4))
        self.eval().requires_grad_(False)
        self.identity = TeacherIdentity(
            name="tiny", weights_sha256="a" * 64, config_sha256="b" * 64, tasks=TASKS,
            decoding=Decoding(max_per_frame=30, score_threshold=0.05, nms_thr=0.2),
        )  # fmt: skip
        self.points = PointPipeline(past_sweeps=0)
        self.canvas_grid = self.heatmap_grid = GRID
        self.layer_grids = {"head": GRID, "backbone0": GRID}

    def prepare(self, points: np.ndarray) -> Tensor:
        cells = np.floor(GRID.to_cells(points[:, :2])).astype(int)
        counts = np.zeros(GRID.shape, np.float32)
        inside = ((cells >= 0) & (cells < GRID.shape[::-1])).all(axis=1)
        np.add.at(counts, (cells[inside, 1], cells[inside, 0]), 1)
        return torch.from_numpy(counts)

    def forward(self, prepared: list[Tensor]) -> TeacherOutput:
        counts = torch.stack(prepared)[:, None]
        features = self.backbone(counts.log1p()).relu()
        heatmap, head_maps = self.head(features)
        return TeacherOutput(
            layers={"head": features, "backbone0": features},
            heatmap=heatmap.sigmoid(),
            head_maps=head_maps,
            canvas_mask=counts[:, 0] > 0,
        )

    def head_weights(self) -> dict[str, Tensor]:
        return self.head.state_dict()


def make_store(path: Path, frames: Frames, **views: object) -> Path:
    """TinyTeacher on these frames."""
    layers = {"head": CodecSpec(), "backbone0": CodecSpec()}
    config = DumpConfig(teacher="tiny", layers=layers, views=ViewsConfig(**views), workers=0)
    dump(config, frames, TinyTeacher(), path)
    return path


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The above."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def views_store(tmp_path_factory: pytest.TempPathFactory, made_frames: Frames) -> Path:
    """Four reflections and two drawn views of each frame of mini_train."""
    return make_store(tmp_path_factory.mktemp("views") / "teacher.zarr", made_frames, reflections=4, drawn=2)


@pytest.fixture(scope="session")
def evaluations(made_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Results, Metrics]]:
    """By name: "good" is 0.1 m off, "poor" 1 m."""
    base, found = tmp_path_factory.mktemp("runs"), {}
    for name, off_m in (("good", 0.1), ("poor", 1.0)):
        metrics = evaluate(_moved(made_frames, off_m), made_frames, base / name / "evaluation")
        found[name] = read_results(base / name / "evaluation"), metrics
    return found


def _moved(frames: Frames, off_m: float) -> list[tuple[str, Detections]]:
    detections = []
    for frame in frames:
        boxes = torch.from_numpy(frame.boxes.copy())
        boxes[:, 0] += off_m
        scores, labels = torch.linspace(0.9, 0.8, len(boxes)), torch.from_numpy(frame.labels)
        detections.append((frame.token, Detections(boxes=boxes, scores=scores, labels=labels)))
    return detections


TINY_TASKS = [["car"], ["pedestrian", "traffic_cone"], ["barrier"]]

TINY: dict[str, Any] = {
    "data": {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val", "workers": 0},
    "image": {"size": [32, 64]},
    "detector": {
        "image_backbone": "resnet18",
        "image_neck_channels": 16,
        "depth_m": [1.0, 17.0, 4.0],
        "grid": {"x_range_m": [-16.0, 16.0], "y_range_m": [-16.0, 16.0], "cell_m": [2.0, 2.0]},
        "lift_channels": 8,
        "bev_channels": [8, 16, 32],
        "bev_neck_channels": 16,
        "head": {
            "shared_channels": 8,
            "tasks": TINY_TASKS,
            "decoding": {"nms_type": "circle", "min_radius": [4.0, 0.5, 1.0]},
        },
    },
    "training": {"epochs": 1, "batch_size": 1, "learning_rate": 1.0e-4},
}
"""A student that trains in seconds; without a teacher."""


@pytest.fixture(scope="session")
def tiny_student() -> Callable[..., StudentConfig]:
    """The tiny student, with some of its training's keys set otherwise."""
    return lambda **training: StudentConfig.model_validate(TINY | {"training": TINY["training"] | training})
