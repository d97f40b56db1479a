"""What a training begins with, on each of its devices."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from cache.nuscenes.frames import Frames
from student.training.setup import TrainingSetup, set_up_training
from tests.factories.students import tiny_student


def repeated(frames: Frames, count: int) -> Frames:
    """A split of that many frames, all of them the first."""
    split = copy(frames)
    object.__setattr__(split, "tokens", frames.tokens[:1] * count)
    return split


@pytest.fixture(scope="module")
def setup(made_root: Path) -> TrainingSetup:
    return set_up_training(tiny_student(batch_size=1), made_root, ())


def test_ranks_share_a_validation_split_alike(setup: TrainingSetup, made_frames: Frames) -> None:
    def shares(devices: int) -> list[list[int]]:
        split = replace(setup, config=tiny_student(devices=devices), val_frames=repeated(made_frames, 5))
        return [list(split.validation_loader(rank).sampler) for rank in range(devices)]

    assert shares(2) == [[0, 2, 4], [1, 3, 0]]
    assert shares(1) == [[0, 1, 2, 3, 4]]


def test_nothing_is_validated_without_a_folder(made_root: Path) -> None:
    assert set_up_training(tiny_student(validate_every=1), made_root, ()).validation_loader() is None


def test_ranks_share_a_training_from_the_step_to_begin_with(setup: TrainingSetup) -> None:
    (first,), (second,) = (list(replace(setup, config=tiny_student(devices=2)).sampler(rank)) for rank in (0, 1))
    assert {first.index, second.index} == {0, 1}
    resumed = replace(setup, step=3).sampler()
    assert (resumed.epoch, [draw.seed for draw in resumed]) == (1, [(0, 1, 1)])
