"""A training step: what the objective is told of where the teachers saw the sample."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache.errors import NotCachedError
from cache.geometry.views import PUBLIC_AUGMENT
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from student.config.student import StudentConfig
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.samplers import SampleDraw
from student.data.teacher_source import TeacherSource
from student.training.module import StudentModule
from student.training.trainer import train_student
from tests.factories.students import NARROW, dump_views

FGD = {"kind": "fgd", "spatial_attention": "teacher_student", "false_positives": "teacher", "non_empty_weight": 0.1}


@pytest.fixture
def config() -> StudentConfig:
    """A student small enough for a step in a test, over the tiny teacher's range."""
    detector = NARROW | {"name": "bevdet4d"}
    distill = {"pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}], "terms": [FGD]}
    data = {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val", "workers": 0}
    values = {"data": data, "image": {"size": (64, 96)}, "detector": detector, "distill": distill}
    return StudentConfig.model_validate(values | {"training": {"batch_size": 2, "epochs": 1}})


def augmented(config: StudentConfig, **changes: Any) -> StudentConfig:
    return StudentConfig.model_validate(config.model_dump() | {"bev_augment": changes})


def make_batch(frames: Frames, config: StudentConfig, store: Path, replayed: bool = False) -> Batch:
    source = TeacherSource(cache=TeacherCache(store), layers=("head",))
    config = augmented(config, replay=True) if replayed else config
    dataset = StudentDataset(frames, config, config.detector.times, sources=(source,))
    return dataset.collate([dataset[SampleDraw(index=index, seed=(index + 7,))] for index in range(2)])


def make_module(config: StudentConfig, batch: Batch, store: Path) -> StudentModule:
    torch.manual_seed(0)
    module = StudentModule(config, [TeacherCache(store).spec])
    with torch.no_grad():
        module.training_step(batch, 0)  # lazy parts, batch norms
    return module


@pytest.mark.parametrize("replayed", [False, True], ids=["no augmentation", "replayed views"])
def test_nothing_is_warped_where_the_teacher_saw_the_same(
    replayed: bool, config: StudentConfig, made_frames: Frames, views_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.distill.pairs.warp", None)
    monkeypatch.setattr("student.distill.predictions.warp_max", None)
    batch = make_batch(made_frames, config, views_store, replayed)
    module = make_module(config, batch, views_store)
    assert batch.to_teachers == (None,)
    assert torch.isfinite(module.training_step(batch, 0))


def test_a_reflection_that_the_store_holds_is_not_warped(
    config: StudentConfig, made_frames: Frames, views_store: Path
) -> None:
    config = augmented(config, flip_x=True, flip_y=True)
    batch = make_batch(made_frames, config, views_store)
    assert not torch.equal(batch.bev_matrix, torch.eye(4).expand(2, 4, 4))
    assert batch.to_teachers == (None,)


def test_an_augmented_step_warps_and_learns(config: StudentConfig, made_frames: Frames, views_store: Path) -> None:
    config = augmented(config, **PUBLIC_AUGMENT.model_dump())
    batch = make_batch(made_frames, config, views_store)
    module = make_module(config, batch, views_store)
    (to_teacher,) = batch.to_teachers
    assert to_teacher is not None
    assert to_teacher.device.type == "cpu"
    (teacher,) = batch.teachers
    # Its inverse is the draw, from the teacher's view.
    back = torch.linalg.inv(to_teacher).float() @ teacher.view_matrix
    torch.testing.assert_close(back, batch.bev_matrix, atol=1e-5, rtol=0)
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert module.detector.bev_neck.up2[-1].weight.grad.abs().sum() > 0


def test_a_warped_teacher_is_told_apart_from_one_that_is_not(
    config: StudentConfig, made_frames: Frames, views_store: Path
) -> None:
    """The same step without the matrix to the teacher's view has another loss."""
    config = augmented(config, **PUBLIC_AUGMENT.model_dump())
    batch = make_batch(made_frames, config, views_store)
    module = make_module(config, batch, views_store).eval()
    with torch.no_grad():
        right, other = (module.training_step(b, 0) for b in (batch, replace(batch, to_teachers=(None,))))
    assert right != other


def test_replay_needs_drawn_views(config: StudentConfig, made_frames: Frames, made_root: Path, tmp_path: Path) -> None:
    store = dump_views(tmp_path / "two.zarr", made_frames, reflections=2)
    with pytest.raises(NotCachedError) as caught:
        train_student(augmented(config, replay=True), made_root, [store], tmp_path / "run")
    message = str(caught.value)
    assert "the store holds no drawn views to replay" in message
    assert "got the views canonical, flip_y" in message
    assert "Dump the teacher with views.drawn, or set bev_augment.replay to false" in message


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_channels_last_has_the_same_losses(
    precision: str, config: StudentConfig, made_frames: Frames, views_store: Path
) -> None:
    def step(channels_last: bool) -> torch.Tensor:
        training = config.training.model_copy(update={"channels_last": channels_last})
        module = make_module(config.model_copy(update={"training": training}), batch, views_store)
        convolution = module.detector.head.shared_conv[0].weight
        assert convolution.is_contiguous(memory_format=torch.channels_last) == channels_last
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return module.training_step(batch, 0)

    batch = make_batch(made_frames, config, views_store)
    tolerance = 1e-4 if precision == "32-true" else 3e-2
    torch.testing.assert_close(step(True), step(False), rtol=tolerance, atol=0)


def test_gradients_are_logged_every_few_steps(
    config: StudentConfig, made_frames: Frames, views_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    training = config.training.model_copy(update={"log_gradients_every": 2, "accumulate": 2})
    module = make_module(
        config.model_copy(update={"training": training}),
        batch := make_batch(made_frames, config, views_store),
        views_store,
    )
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append({"step": step} | values))
    monkeypatch.setattr(type(module), "loggers", [logger])
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    for step, batch_idx in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 4)):
        monkeypatch.setattr(type(module), "global_step", step)
        module.training_step(batch, batch_idx)
    assert [values["step"] for values in logged] == [0, 2]
    assert all(values["gradients/ratio"] > 0 for values in logged)
