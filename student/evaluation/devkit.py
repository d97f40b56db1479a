"""nuScenes-devkit's evaluation of a file of results."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from student.evaluation.matching import true_positives
from student.evaluation.metrics import Metrics
from student.evaluation.official_tables import OfficialEval
from student.evaluation.true_positives import write_true_positives


def official_metrics(results: Path, frames: Frames, out: Path) -> Metrics:
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
