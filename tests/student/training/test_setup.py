"""What a training begins with, on each of its devices."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from student.config.student import TASKS, StudentConfig
from student.evaluation.teacher_boxes import teacher_detections
from student.training.setup import TrainingSetup, set_up_training
from tests.factories.students import GRID, TINY, dump_views, tiny_student


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


def test_unlabelled_frames_come_with_the_teachers_boxes(made_root: Path, made_frames: Frames, tmp_path: Path) -> None:
    """The annotated frames of mini_val, taken for unlabelled ones."""
    everything = Frames(root=made_root, version="v1.0-mini", splits=("mini_train", "mini_val"))
    store = dump_views(tmp_path / "teacher.zarr", everything)
    config = tiny_student(batch_size=1)
    terms = [{"kind": "heatmap_temperature"}]
    tasks = {"head": {**TINY["detector"]["head"], "tasks": TASKS, "decoding": {}}}
    values = config.model_dump() | {
        "data": TINY["data"] | {"val_split": "test", "unlabelled_split": "mini_val"},
        "detector": TINY["detector"] | tasks | {"grid": GRID.model_dump()},
        "distill": {"terms": terms, "pseudo_labels": 0.0},
    }
    setup = set_up_training(StudentConfig.model_validate(values), made_root, [store])
    assert setup.dataset.frames.tokens == everything.tokens
    unlabelled = everything.tokens.index(made_frames.of_splits("mini_val").tokens[0])
    ((_, found),) = teacher_detections(TeacherCache(store), [everything.tokens[unlabelled]])
    assert torch.equal(setup.dataset[unlabelled].boxes[0], found.boxes.float())
    labelled = everything.tokens.index(made_frames.tokens[0])
    assert len(setup.dataset[labelled].boxes[0]) == len(made_frames[0].boxes)
