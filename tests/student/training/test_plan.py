import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.store.reader import TeacherCache
from student.config.student import StudentConfig
from student.data.teacher_source import TeacherSource
from student.training.plan import TrainingMemory, bytes_per_sample, plan_training
from student.visualization.training import plan_tables

ROOT = Path(__file__).parents[3]
GB = 10**9

SMALL = StudentConfig.model_validate(
    {
        "data": {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val", "workers": 0},
        "image": {"size": [128, 352]},
        "detector": {
            "image_backbone": "resnet18",
            "image_neck_channels": 16,
            "depth_m": [1.0, 31.0, 5.0],
            "grid": {"x_range_m": [-16.0, 16.0], "y_range_m": [-16.0, 16.0], "cell_m": [2.0, 2.0]},
            "lift_channels": 16,
            "bev_channels": [16, 16, 16],
            "bev_neck_channels": 16,
            "head": {"shared_channels": 16},
        },
        "training": {"batch_size": 2, "epochs": 3},
    }
)

MEASURE = """
import sys, torch
from pathlib import Path
from benchmarks.memory import reset_peak
from student.config.student import StudentConfig
from student.training.memory import peak_bytes
from student.training.setup import set_up_training

torch.set_num_threads(1)
setup = set_up_training(StudentConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), ())
batch = setup.dataset.collate([setup.dataset[0], setup.dataset[1]])
for _ in range(2):
    before = reset_peak("cpu")
    torch.stack(list(setup.module.loss_terms(batch).values())).sum().backward()
    print(peak_bytes("cpu") - before)
    setup.module.zero_grad()
"""


def test_the_largest_batch_by_hand() -> None:
    memory = TrainingMemory(weights=GB // 4, optimiser=GB // 2, fixed=GB // 4, each_sample=GB)
    assert memory.peak(3) == 4 * GB
    # 24 GB less a tenth less 1 GB: 20.6 GB, of which 1 GB is there without a batch.
    assert memory.largest_batch(24) == 19
    assert memory.largest_batch(2) == 0


def test_a_plan_without_a_teacher(made_root: Path) -> None:
    plan = plan_training(SMALL, made_root, ())
    assert (plan.steps, plan.epochs, plan.epoch_bytes) == (3, 3, 0)
    # BatchNorm's statistics are weights too; AdamW keeps two numbers for each parameter.
    assert plan.memory.weights > 4 * plan.parameters
    assert plan.memory.optimiser == 8 * plan.parameters
    assert plan.memory.fixed >= 0
    rows = dict(plan_tables(plan)[0].rows)
    assert rows["steps"] == "3 in 3 epochs of 1"
    assert rows["peak with 2 samples"] == f"{plan.memory.peak(2) / GB:,.2f} GB"


def test_half_precision_takes_less(made_root: Path) -> None:
    half = SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"precision": "bf16-mixed"})})
    memories = [plan_training(config, made_root, ()).memory for config in (half, SMALL)]
    assert memories[0].each_sample < 0.75 * memories[1].each_sample


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_what_a_process_takes(made_root: Path) -> None:
    """Of two steps: the second finds oneDNN's primitives made. Small blocks are mapped, so that none is kept."""
    memory = plan_training(SMALL, made_root, ()).memory
    command = [sys.executable, "-c", MEASURE, SMALL.model_dump_json(), str(made_root)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    measured = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT).stdout
    expected = memory.peak(2) - memory.weights - memory.optimiser
    assert int(measured.split()[-1]) == pytest.approx(expected, rel=0.2)


def test_what_is_read_of_a_cache(views_store: Path) -> None:
    """One view of each array that a training reads."""
    cache = TeacherCache(views_store)
    layer = cache.spec.layers[0].name
    folders = ("heatmap", "canvas_mask", f"features/{layer}", f"features/{layer}_scale")
    files = [file for folder in folders for file in (views_store / folder).rglob("c.*")]
    stored = sum(file.stat().st_size for file in files) / len(cache) / len(cache.spec.views)
    assert bytes_per_sample(TeacherSource(cache=cache, layers=(layer,))) == pytest.approx(stored)
