"""The official nuScenes detection metrics of a student or of a cached teacher."""

from collections.abc import Callable, Iterable
from pathlib import Path

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from student.evaluation.metrics import Metrics
from student.evaluation.submission import RESULTS, Sensor, write_submission
from student.evaluation.truth import require_truth
from student.models.decoding import Detections


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
        ConfigError: the devkit is not installed.
        DataError: see `require_truth`; a frame has no entry, or a detection is not finite.
    """
    require_devkit()
    require_truth(frames)
    results = out / RESULTS
    write_submission(detections, frames, results, sensor, progress)
    from student.evaluation.devkit import official_metrics

    return official_metrics(results, frames, out)


def require_devkit(where: str = "evaluate") -> None:
    """Raise ConfigError unless the devkit can be imported, which only the official metrics need.

    Args:
        where: the setting or command that asks for them.
    """
    try:
        import nuscenes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the official metrics need nuScenes' devkit",
            where=where,
            got=error,
            expected="nuscenes-devkit, which takes numpy < 2",
            cure="Run pip install 'nuscenes-devkit>=1.2' (the extra evaluate); `predict`, and training with "
            "training.validate_every=0, do without",
        ) from error
