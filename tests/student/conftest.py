"""Two evaluations of the made-up world's ground truth, moved a little and a lot."""

import pytest
import torch

from cache.frames import Frames
from student.evaluate import Metrics, evaluate
from student.head import Detections
from student.results import Results, read_results


@pytest.fixture(scope="session")
def evaluations(made_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Results, Metrics]]:
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
