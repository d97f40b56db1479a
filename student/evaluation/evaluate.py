"""The official nuScenes detection metrics of a student or of a cached teacher."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset
from student.evaluation.metrics import Metrics
from student.evaluation.official_tables import OfficialEval
from student.evaluation.submission import Sensor, write_submission
from student.evaluation.true_positives import true_positives, write_true_positives
from student.evaluation.truth import require_truth
from student.models.decoding import Detections
from student.models.detectors import BevDetector


def evaluate(
    detections: Iterable[tuple[str, Detections]],
    frames: Frames,
    out: Path,
    sensor: Sensor = "camera",
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Run the devkit's DetectionEval (configuration detection_cvpr_2019).

    Args:
        detections: token and detections, one for each frame of the split.
        frames: the frames of the evaluated split.
        out: folder for results_nusc.json, true_positives.csv and the devkit's own metrics_summary.json and
            metrics_details.json; `student.evaluation.results` reads them back.
        sensor: the detector's input, as the submission format records it.
        progress: called with (done, total) after each frame.

    Raises:
        DataError: see `require_truth`; a frame has no entry, or a detection is not finite.
    """
    require_truth(frames)
    return _official_metrics(write_results(detections, frames, out, sensor, progress), frames, out)


def write_results(
    detections: Iterable[tuple[str, Detections]],
    frames: Frames,
    out: Path,
    sensor: Sensor = "camera",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write results_nusc.json alone, which nuScenes' server takes for a split whose annotations are secret.

    Raises:
        DataError: a frame has no entry, or a detection is not finite.
    """
    if progress is not None:
        detections = _with_progress(detections, len(frames), progress)
    path = out / "results_nusc.json"
    write_submission(detections, frames, path, sensor)
    return path


@torch.inference_mode()
def student_detections(
    detector: BevDetector, config: StudentConfig, frames: Frames
) -> Iterator[tuple[str, Detections]]:
    """Token and detections of each frame, on the GPU where there is one.

    Raises:
        DataError: a file of a frame cannot be read.
    """
    dataset = StudentDataset(frames, config, times=detector.times)
    loader = Loader(
        dataset,
        batch_size=config.training.batch_size,
        num_workers=config.data.workers,
        collate_fn=dataset.collate,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device)
    for batch in loader:
        yield from zip(batch.tokens, detector.detect(detector(batch.to(device))), strict=True)


def _with_progress(
    detections: Iterable[tuple[str, Detections]], total: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, Detections]]:
    for done, entry in enumerate(detections, start=1):
        yield entry
        progress(done, total)


def _official_metrics(results: Path, frames: Frames, out: Path) -> Metrics:
    """The devkit's evaluation of a submission; its printed output goes to metrics.txt."""
    with _devkit_errors(results):
        official = OfficialEval(frames, results, out)
        with (out / "metrics.txt").open("w", encoding="utf-8") as printed, redirect_stdout(printed):
            summary = official.main(render_curves=False)
    matches = true_positives(official.gt_boxes, official.pred_boxes, official.cfg.dist_th_tp)
    write_true_positives(matches, out / "true_positives.csv")
    return Metrics.from_summary(summary)


@contextmanager
def _devkit_errors(results: Path) -> Iterator[None]:
    """Name the devkit where it refuses what `require_truth` let pass; the results stay."""
    try:
        yield
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            "nuScenes' devkit refuses the evaluation",
            where=results,
            got=f"{type(error).__name__}: {error}",
            cure="Check the split's tables for what it names; the results are written",
        ) from error
