"""The real nuScenes frame through the full-size teacher into a store, and through a training step from that store.

The student is smaller than in `benchmarks/real_frame.py`, which runs the full-size one.
"""

import json
from pathlib import Path

import pytest
import torch

from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from cache.teacher.mmdet3d import load_teacher
from student.config.student import StudentConfig
from student.training.trainer import train_student

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parent.parent / "configs"
SMALLER = [
    *("data.version=v1.0-mini", "data.train_split=mini_train", "data.workers=0", "image.size=[64,160]"),
    *("detector.image_backbone=resnet18", "detector.image_weights=null", "detector.image_neck_channels=64"),
    "training.epochs=1",
    # The only frame is drawn once, and there is none to validate on.
    *("data.val_split=mini_val", "training.batch_size=1", "training.class_balanced=false", "training.validate_every=0"),
]


@pytest.fixture(scope="module")
def store(real_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed (make setup)")
    out = tmp_path_factory.mktemp("real") / "teacher.zarr"
    settings = load_yaml(
        CONFIGS / "centerpoint_pillar02.yaml", DumpConfig, ["version=v1.0-mini", "splits=[mini_train]", "workers=0"]
    )
    report = dump(settings, real_frames, load_teacher(settings.teacher, checkpoint=None), out)
    assert (report.written, report.sealed) == (1, True)
    return out


def test_the_store_holds_the_teachers_full_size_maps(store: Path, real_frames: Frames) -> None:
    cache = TeacherCache(store)
    sample = cache[real_frames.tokens[0]]
    shapes = {name: tuple(encoded.values.shape) for name, encoded in sample.features.items()}
    assert shapes == {"head": (1, 384, 128, 128), "backbone1": (1, 128, 128, 128), "backbone2": (1, 256, 64, 64)}
    assert sample.heatmap.shape == (1, 10, 128, 128)
    assert sample.canvas_mask.shape == (1, 512, 512)
    assert cache.spec.teacher.weights == "random"
    assert cache.spec.layer("head").grid.cell_m == pytest.approx((0.8, 0.8))
    # 34,688 points of one sweep fall into some thousands of the 0.2 m pillars.
    assert 4_000 < int(sample.canvas_mask.sum()) < 20_000
    assert sample.features["head"].values.dtype == torch.uint8


def test_a_student_takes_a_distilled_step_from_it(store: Path, real_root: Path, tmp_path: Path) -> None:
    config = load_yaml(CONFIGS / "bevdepth_r50.yaml", StudentConfig, SMALLER)
    summary = train_student(config, real_root, [store], tmp_path / "run")
    assert summary.steps == 1
    header = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()[0]
    for term in ("head/foreground", "head/background", "backbone1/foreground", "backbone2/background"):
        assert f"loss/distill/fgd/{term}" in header
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["final_loss"] > 0
