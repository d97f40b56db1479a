"""A small teacher's store with views; two evaluations of the made-up world's ground truth."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import Metrics, evaluate
from student.evaluation.results import Results, read_results
from student.models.decoding import Detections
from tests.factories.students import dump_views


@pytest.fixture(scope="session")
def views_store(tmp_path_factory: pytest.TempPathFactory, made_frames: Frames) -> Path:
    """Four reflections and two drawn views of each frame of mini_train."""
    return dump_views(tmp_path_factory.mktemp("views") / "teacher.zarr", made_frames, reflections=4, drawn=2)


@pytest.fixture(scope="session")
def evaluations(
    devkit: ModuleType, made_frames: Frames, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Results, Metrics]]:
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
