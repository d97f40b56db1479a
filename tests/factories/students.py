"""A small teacher with a centre head of six tasks, its store, and a student that trains in seconds."""

from pathlib import Path
from typing import Any

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.geometry.grid import BevGrid
from cache.geometry.views import ViewsConfig
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec, Decoding
from student.config.student import TASKS, HeadConfig, StudentConfig
from student.models.center_head import CenterHead
from tests.factories.stores import SmallTeacher

GRID = BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0), cell_m=(0.8, 0.8))


def make_teacher() -> SmallTeacher:
    """A teacher of nuScenes' six tasks that keeps the canvas's resolution."""
    return SmallTeacher(
        grid=GRID,
        channels=6,
        stride=1,
        tasks=TASKS,
        make_head=lambda channels: CenterHead(channels, HeadConfig(shared_channels=4)),
        past_sweeps=0,
        log_counts=True,
        decoding=Decoding(max_per_frame=30, score_threshold=0.05, nms_thr=0.2),
    )


def dump_views(path: Path, frames: Frames, **views: object) -> Path:
    """Dump that teacher on these frames."""
    layers = {"head": CodecSpec(), "backbone0": CodecSpec()}
    config = DumpConfig(teacher="small", layers=layers, views=ViewsConfig(**views), workers=0)
    dump(config, frames, make_teacher(), path)
    return path


NARROW: dict[str, Any] = {
    "image_backbone": "resnet18",
    "image_neck_channels": 8,
    "grid": GRID.model_dump(),
    "depth_m": (1.0, 17.0, 4.0),
    "lift_channels": 4,
    "bev_channels": (4, 4, 4),
    "bev_neck_channels": 4,
}
"""A detector of few channels over that teacher's range, small enough for a step in a test; without a name."""

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


def tiny_student(**training: object) -> StudentConfig:
    """The tiny student, with some of its training's keys changed."""
    return StudentConfig.model_validate(TINY | {"training": TINY["training"] | training})
