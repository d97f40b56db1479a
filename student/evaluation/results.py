"""What trainings and evaluations left in their folders, read back."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cache.errors import DataError
from cache.nuscenes.frames import Frame, boxes_in_lidar
from student.evaluation.true_positives import TruePositive, read_true_positives


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision over recall, as the devkit samples it; precision is 0 beyond the recall that was reached."""

    recall: Float[np.ndarray, "101"]
    precision: Float[np.ndarray, "101"]


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation.

    errors: the five mean errors by the devkit's names.
    curves: by class and by the distance in metres within which a detection counts.
    """

    name: str
    folder: Path
    mean_ap: float
    nds: float
    errors: dict[str, float]
    class_ap: dict[str, float]
    curves: dict[tuple[str, float], Curve]
    true_positives: tuple[TruePositive, ...]

    def boxes(self, frame: Frame, count: int | None = None) -> Float[np.ndarray, "_ 9"]:
        """The surest detections of a frame, as `Frame.boxes`.

        Args:
            count: as many as there are objects by default: how sure a detector is varies with its training.
        """
        found = _json(self.folder / "results_nusc.json")["results"][frame.token]
        surest = sorted(found, key=lambda each: -each["detection_score"])[
            : len(frame.boxes) if count is None else count
        ]
        centers, sizes, rotations, velocities = (
            np.array([each[name] for each in surest], dtype=np.float64).reshape(-1, width)
            for name, width in (("translation", 3), ("size", 3), ("rotation", 4), ("velocity", 2))
        )
        velocities = np.pad(velocities, ((0, 0), (0, 1)))
        return boxes_in_lidar(centers, sizes, rotations, velocities, np.linalg.inv(frame.lidar_to_global))


def read_results(folder: Path, name: str | None = None) -> Results:
    """The evaluation that `cli evaluate --out FOLDER` left.

    Args:
        name: what it is called in pictures; the name of the folder, or of the run's if it is called "evaluation".

    Raises:
        DataError: a file is missing or broken.
    """
    folder = Path(folder)
    summary = _json(folder / "metrics_summary.json")
    curves = {}
    for key, values in _json(folder / "metrics_details.json").items():
        label, distance_m = key.split(":")
        curve = Curve(recall=np.asarray(values["recall"]), precision=np.asarray(values["precision"]))
        curves[label, float(distance_m)] = curve
    own = folder.resolve().parent.name if folder.name == "evaluation" else folder.name
    return Results(
        name=name or own,
        folder=folder,
        mean_ap=summary["mean_ap"],
        nds=summary["nd_score"],
        errors=summary["tp_errors"],
        class_ap=summary["mean_dist_aps"],
        curves=curves,
        true_positives=read_true_positives(folder / "true_positives.csv"),
    )


@dataclass(frozen=True, kw_only=True)
class Losses:
    """A training's terms by name, over its steps."""

    steps: Float[np.ndarray, "N"]
    values: Float[np.ndarray, "N"]


def read_losses(run: Path) -> dict[str, Losses]:
    """The terms that a training logged, resumed ones joined; "loss/" is left out of their names.

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
