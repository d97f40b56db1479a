"""The errors of each true positive of an evaluation; the devkit keeps only their means."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cache.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TruePositive:
    """The errors of a matched detection, as nuScenes measures them.

    NaN where nuScenes measures none: the heading of cones, the velocity of cones and barriers, unknown velocities.
    """

    name: str
    score: float
    translation_m: float
    scale: float
    """1 - intersection over union, with centres and headings aligned."""
    orientation_rad: float
    velocity_mps: float


def write_true_positives(matches: Iterable[TruePositive], path: Path) -> None:
    """Write true positives as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(TruePositive)])
        rows.writeheader()
        rows.writerows(map(asdict, matches))


def read_true_positives(path: Path) -> tuple[TruePositive, ...]:
    """Read the file of `write_true_positives`.

    Raises:
        DataError: the file is missing or has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(
                TruePositive(name=row.pop("name"), **{key: float(value) for key, value in row.items()})
                for row in csv.DictReader(file)
            )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            "an evaluation's true positives cannot be read",
            where=path,
            got=getattr(error, "strerror", None) or error,
            cure="Run `cli evaluate` again",
        ) from None
