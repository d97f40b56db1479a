"""Read the files of evaluations and trainings: metrics, curves, true positives, losses."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cache.errors import DataError
from cache.nuscenes.frame import Frame
from cache.nuscenes.poses import boxes_in_lidar
from student.evaluation.metrics import Metrics
from student.evaluation.submission import RESULTS
from student.evaluation.true_positives import TruePositive, read_true_positives


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision over recall, as the devkit samples it; precision is 0 beyond the highest recall."""

    recall: Float[np.ndarray, "101"]
    precision: Float[np.ndarray, "101"]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of an evaluation.

    curves: by class and by the distance in metres within which a detection counts.
    """

    name: str
    folder: Path
    metrics: Metrics
    curves: dict[tuple[str, float], Curve]
    true_positives: tuple[TruePositive, ...]

    def boxes(self, frame: Frame, count: int | None = None) -> Float[np.ndarray, "_ 9"]:
        """The detections of a frame with the highest scores, as `Frame.boxes`.

        Args:
            count: by default the number of annotated objects, since scores are not comparable between detectors.
        """
        found = read_submission(self.folder / RESULTS)[frame.token]
        best = sorted(found, key=lambda each: -each["detection_score"])[: len(frame.boxes) if count is None else count]
        return boxes_of(best, frame)


def read_submission(path: Path) -> dict[str, list[dict]]:
    """The detections of each token, as nuScenes' results files have them.

    Raises:
        DataError: the file is missing or broken.
    """
    return _json(path)["results"]


def boxes_of(found: list[dict], frame: Frame) -> Float[np.ndarray, "_ 9"]:
    """Detections of a results file, as `Frame.boxes`."""
    centers, sizes, rotations, velocities = (
        np.array([each[name] for each in found], dtype=np.float64).reshape(-1, width)
        for name, width in (("translation", 3), ("size", 3), ("rotation", 4), ("velocity", 2))
    )
    velocities = np.pad(velocities, ((0, 0), (0, 1)))
    return boxes_in_lidar(centers, sizes, rotations, velocities, np.linalg.inv(frame.lidar_to_global))


def read_results(folder: Path, name: str | None = None) -> Results:
    """Read the output of `cli evaluate --out FOLDER`.

    Args:
        name: for plots; by default the folder's name, or its parent's if that is "evaluation".

    Raises:
        DataError: a file is missing or broken.
    """
    folder = Path(folder)
    metrics, curves = Metrics.from_summary(_json(folder / "metrics_summary.json")), {}
    for key, values in _json(folder / "metrics_details.json").items():
        label, distance_m = key.split(":")
        curve = Curve(recall=np.asarray(values["recall"]), precision=np.asarray(values["precision"]))
        curves[label, float(distance_m)] = curve
    own = folder.resolve().parent.name if folder.name == "evaluation" else folder.name
    return Results(
        name=name or own,
        folder=folder,
        metrics=metrics,
        curves=curves,
        true_positives=read_true_positives(folder / "true_positives.csv"),
    )


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The values of one loss term over a training's steps."""

    steps: Float[np.ndarray, "N"]
    values: Float[np.ndarray, "N"]


def read_losses(run: Path) -> dict[str, Losses]:
    """The loss terms that a training logged, by name without "loss/"; the logs of resumed runs are joined.

    Raises:
        DataError: there is no log.
    """
    logs = sorted((Path(run) / "csv").glob("metrics-*.csv"), key=lambda log: int(log.stem.split("-")[1]))
    rows: list[dict[str, str]] = []
    for log in (*logs, Path(run) / "csv" / "metrics.csv"):
        try:
            with log.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
        except OSError as error:
            raise DataError(
                "a training's log cannot be read", where=log, got=error.strerror, cure="Name a run's folder"
            ) from None
    names = {name for row in rows for name in row if name.startswith("loss/")}
    return {name.removeprefix("loss/"): _logged(rows, name) for name in sorted(names)}


def _logged(rows: list[dict[str, str]], name: str) -> Losses:
    known = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    steps, values = np.asarray(known, dtype=np.float64).reshape(-1, 2).T
    return Losses(steps=steps, values=values)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "an evaluation's file cannot be read", where=path, got=error, cure="Run `cli evaluate` into this folder"
        ) from None
