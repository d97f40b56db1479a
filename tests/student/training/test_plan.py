import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache.store.reader import TeacherCache
from student.config.student import StudentConfig
from student.data.dataset import TeacherSource
from student.training.live_bytes import LiveBytes
from student.training.memory import bytes_of, tensors_of
from student.training.plan import TrainingMemory, bytes_per_sample, plan_training

ROOT = Path(__file__).parents[3]
GB = 10**9
FLOATS = 1000
BYTES = 4 * FLOATS

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
from student.data.dataset import collate
from student.training.setup import prepare
from student.training.process_memory import peak_bytes

torch.set_num_threads(1)
prepared = prepare(StudentConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), ())
batch = collate([prepared.dataset[0], prepared.dataset[1]])
for _ in range(2):
    before = reset_peak("cpu")
    torch.stack(list(prepared.module.loss_terms(batch).values())).sum().backward()
    print(peak_bytes("cpu") - before)
    prepared.module.zero_grad()
"""


def test_a_tensor_counts_while_it_lives() -> None:
    with LiveBytes() as live:
        x = torch.ones(FLOATS)
        y = x * 2
        assert live.now == 2 * BYTES
        view = y[10:]
        del y
        assert live.now == 2 * BYTES
        del view
        assert live.now == BYTES
        x.add_(1)
    assert (live.now, live.peak) == (BYTES, 2 * BYTES)


def test_what_autograd_saves_and_frees_is_seen() -> None:
    x = torch.rand(FLOATS, requires_grad=True)
    with LiveBytes() as live:
        loss = x.exp().sum()  # exp keeps its result, and the sum is one number
        assert live.now == BYTES + 4
        loss.backward()
        assert live.now == BYTES + 4  # the result went, the gradient came
    assert x.grad is not None


def test_tensors_are_found_in_batches(kit_batch: object) -> None:
    assert bytes_of(tensors_of(kit_batch)) == 2 * BYTES + 3


@pytest.fixture
def kit_batch() -> object:
    return (torch.zeros(FLOATS), {"a": torch.zeros(3, dtype=torch.uint8)}, None, (torch.zeros(FLOATS), "b"))


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
    rows = dict(plan.table().rows)
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
