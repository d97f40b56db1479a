"""nuScenes-devkit's evaluation of a file of results; beside `matching` and `official_tables`, all that imports it."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nuscenes.eval.common import loaders
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from student.evaluation.matching import true_positives
from student.evaluation.metrics import Metrics
from student.evaluation.official_tables import official_tables
from student.evaluation.true_positives import write_true_positives


def official_metrics(results: Path, frames: Frames, out: Path) -> Metrics:
    """The devkit's evaluation of a submission; its printed output goes to metrics.txt."""
    rules = config_factory("detection_cvpr_2019")
    with _devkit_errors(results):
        with official_tables(frames) as (tables, split):
            official = _DetectionEval(tables, rules, str(results), split, output_dir=str(out), verbose=False)
        with (out / "metrics.txt").open("w", encoding="utf-8") as printed, redirect_stdout(printed):
            summary = official.main(render_curves=False)
    matches = true_positives(official.gt_boxes, official.pred_boxes, rules.dist_th_tp)
    write_true_positives(matches, out / "true_positives.csv")
    return Metrics.from_summary(summary)


class _DetectionEval(DetectionEval):
    """The devkit's, which asks the first box what kind of boxes there are, and raises where there is none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        with patch.object(loaders, "_get_box_class_field", lambda boxes: "detection_name"):
            super().__init__(*args, **options)


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
