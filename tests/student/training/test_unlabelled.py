"""Frames without labels: no boxes of theirs are read, no detection loss is theirs, and the teacher's boxes are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from student.config.student import StudentConfig
from student.models.center_targets import head_targets, heatmap_loss
from student.training.setup import set_up_training
from tests.factories.students import NARROW, dump_views

DISTILL = {
    "pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}],
    "terms": [{"kind": "fgd", "false_positives": "teacher", "fp_weight": 0.1}, {"kind": "box_response"}],
    "foreground": {"source": "boxes_or_teacher", "threshold": 0.05, "peaks": 20},
}


def config(**changes: Any) -> StudentConfig:
    """Labels of the world's second scene alone; the first is trained on without them."""
    data = {
        "version": "v1.0-mini",
        "train_split": "mini_val",
        "val_split": "test",
        "unlabelled_split": "mini_train",
        "workers": 0,
    }
    detector = NARROW | {"name": "bevdet"}
    values = {"data": data, "image": {"size": (32, 64)}, "detector": detector, "distill": DISTILL}
    values |= {"training": {"batch_size": 2, "epochs": 1}}
    for name, part in changes.items():
        values[name] = values[name] | part if isinstance(part, dict) else part
    return StudentConfig.model_validate(values)


@pytest.fixture(scope="module")
def store(made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's maps of all four frames."""
    frames = Frames(root=made_root, version="v1.0-mini", splits=("mini_train", "mini_val"))
    return dump_views(tmp_path_factory.mktemp("all") / "teacher.zarr", frames)


@pytest.mark.slow
def test_a_training_on_frames_of_which_half_have_labels(made_root: Path, store: Path) -> None:
    setup = set_up_training(config(), made_root, [store])
    dataset, module = setup.dataset, setup.module.eval()
    train, unlabelled = (set(dataset.frames.of_splits(split).tokens) for split in ("mini_val", "mini_train"))
    assert set(dataset.frames.tokens) == train | unlabelled
    assert dataset.unlabelled == dict.fromkeys(unlabelled)
    first = {
        split: next(i for i, t in enumerate(dataset.frames.tokens) if t in split_)
        for split, split_ in {"labelled": train, "not": unlabelled}.items()
    }
    batch = dataset.collate([dataset[first["labelled"]], dataset[first["not"]]])
    assert batch.labelled == (True, False)
    assert len(batch.boxes[0]) and not len(batch.boxes[1]) and not len(batch.labels[1])

    output = module.detector(batch)
    head, grid = module.config.detector.head, module.config.detector.grid
    targets = head_targets(batch.boxes, batch.labels, grid, head)
    expected = heatmap_loss(output.heatmap[:1], targets.heatmap[:1], head.tasks)
    assert module.detector.losses(output, batch)["heatmap"].item() == pytest.approx(expected.item(), rel=1e-6)

    neither = dataset.collate([dataset[first["not"]], dataset[first["not"]]])
    terms = module.loss_terms(neither)
    assert (terms["heatmap"], terms["boxes"]) == (0, 0)
    assert terms["distill/fgd/head/foreground"] > 0
    assert terms["distill/box_response/boxes"] > 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"distill": None}, "distill, with foreground: teacher"),
        ({"distill": {"foreground": "boxes"}}, "distill, with foreground: teacher"),
        ({"training": {"class_balanced": True}}, "class_balanced: false"),
    ],
)
def test_settings_that_need_labels_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"without labels are trained on.*got mini_train; expected .*{expected}"):
        config(**changes)


def test_splits_that_share_a_scene_are_refused(made_root: Path, store: Path) -> None:
    with pytest.raises(ConfigError, match=r"of training or validation, too .data.train_split, data.unlabelled_split"):
        set_up_training(config(data={"train_split": "mini_train"}), made_root, [store])
