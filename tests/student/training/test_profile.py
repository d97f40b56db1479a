from pathlib import Path

import pytest
import torch

from cache.nuscenes.frames import Frames
from student.config.student import StudentConfig
from student.data.batch import LoadSeconds
from student.data.dataset import StudentDataset
from student.training.profile import PARTS, WARM_UP, StepProfile, StepProfiler, profile_student
from student.visualization.training import profile_advice

TINY = StudentConfig.model_validate(
    {
        "data": {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val", "workers": 0},
        "image": {"size": [64, 160]},
        "detector": {
            "image_backbone": "resnet18",
            "image_neck_channels": 16,
            "depth_m": [1.0, 31.0, 5.0],
            "grid": {"x_range_m": [-16.0, 16.0], "y_range_m": [-16.0, 16.0], "cell_m": [2.0, 2.0]},
            "lift_channels": 8,
            "bev_channels": [8, 8, 8],
            "bev_neck_channels": 8,
            "head": {"shared_channels": 8},
        },
        "training": {"batch_size": 2},
    }
)


class Seconds:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_a_part_gets_the_time_since_the_part_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = Seconds()
    monkeypatch.setattr("student.training.profile.time", seconds)
    profiler = StepProfiler()
    data, forward, backward = (
        "[Loop].train_dataloader_next",
        "[Strategy]Single.training_step",
        "[Strategy]Single.backward",
    )
    for forward_s in (2.0, 3.0):
        for action, spent in ((data, 0.5), (forward, forward_s), (data, 0.25), ("ignored", 1.0), (backward, 3.0)):
            profiler.start(action)
            seconds.now += spent
            profiler.stop(action)
        seconds.now += 0.5
        profiler.end_step()
    assert profiler.steps == [
        {"data": 0.75, "forward": 2.0, "backward": 4.0, "optimiser": 0.5},
        {"data": 0.75, "forward": 3.0, "backward": 4.0, "optimiser": 0.5},
    ]


def test_the_objective_is_no_part_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = Seconds()
    monkeypatch.setattr("student.training.profile.time", seconds)
    profiler = StepProfiler()
    with profiler.profile("[Strategy]Single.training_step"):
        seconds.now += 2.0
        with profiler.profile("objective"):
            seconds.now += 4.0
        seconds.now += 1.0
    profiler.end_step()
    assert profiler.steps == [{"forward": 3.0, "objective": 4.0, "optimiser": 0.0}]


def test_a_parts_end_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    StepProfiler().stop("[Strategy]Single.training_step")
    assert waited == [True]


def test_medians_and_shares_by_hand() -> None:
    steps = [{"data": 1.0, "backward": 3.0}, {"data": 1.0, "backward": 5.0}, {"data": 2.0, "backward": 8.0}]
    loads = [LoadSeconds(images=0.4, features=0.2), LoadSeconds(images=0.8), LoadSeconds(depth=0.6)]
    profile = StepProfile.of(steps, loads, TINY)
    parts = {part.name: part for part in profile.parts}
    assert profile.step_s == 6.0
    assert parts["data"].median_s == 1.0
    assert parts["data"].share == pytest.approx(4 / 20)
    assert parts["backward"].median_s == 5.0
    assert parts["objective"].median_s == 0.0
    assert profile.load.images == pytest.approx(1.2 / 6)
    assert profile.load.features == pytest.approx(0.2 / 6)
    assert profile.load.depth == pytest.approx(0.1)
    assert (
        profile_advice(profile)
        == "20% of the time is spent waiting for data: raise data.workers, if there are cores for them."
    )


def test_loading_is_timed_where_it_happens(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, TINY, with_depth=True)
    first, second = dataset[0], dataset[1]
    load = dataset.collate([first, second]).load_seconds
    assert load.images == first.load_seconds.images + second.load_seconds.images
    assert min(load.images, load.depth) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_is_profiled(made_root: Path, workers: int) -> None:
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"workers": workers})})
    told = []
    profile = profile_student(config, made_root, (), steps=2, progress=lambda *done: told.append(done))
    parts = {part.name: part for part in profile.parts}
    assert tuple(parts) == PARTS
    assert profile.steps == 2
    assert sum(part.share for part in profile.parts) == pytest.approx(1)
    # Of two steps, the median is the mean: the parts add up to the step.
    assert sum(part.median_s for part in profile.parts) == pytest.approx(profile.step_s)
    assert all(parts[name].median_s > 0 for name in ("data", "forward", "backward", "optimiser"))
    assert parts["objective"].median_s == 0
    assert profile.load.images > 0
    if workers == 0:
        # Loading happens within the step.
        assert parts["data"].median_s > profile.load.images + profile.load.depth
    assert told[-1] == (WARM_UP + 2, WARM_UP + 2)
