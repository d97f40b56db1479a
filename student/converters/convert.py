"""A public checkpoint -> a student's, to be evaluated or trained further; nothing is left out silently."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from cache.teacher.checkpoint import Checkpoint, read_checkpoint, to_current_boxes
from cache.visualization.tables import Table
from student.config.student import StudentConfig
from student.converters.formats import PublicFormat, format_of, geometry_differences, to_velocities
from student.models.checkpoint import save_student
from student.models.detectors import build_detector

Fate = Literal["used", "unused", "missing", "no place", "other shape"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What becomes of one tensor of the file, or of one of ours that nothing fills.

    public: its name in the file; "" where the file has none.
    ours: its name in the detector; "" where the detector has none.
    shape: the file's, or ours where the file has none.
    note: what was changed, or why it is not used.
    """

    fate: Fate
    public: str
    ours: str
    shape: tuple[int, ...]
    note: str = ""

    def __str__(self) -> str:
        names = " -> ".join(name for name in (self.public, self.ours) if name)
        return f"{names} {self.shape}{f': {self.note}' if self.note else ''}"


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What becomes of every tensor of a file and of a detector.

    format: the family that the file belongs to.
    boxes: what was done about the box convention.
    """

    source: Path
    format: str
    boxes: str
    rows: tuple[Row, ...]

    def of(self, fate: Fate) -> list[Row]:
        """The rows of one fate."""
        return [row for row in self.rows if row.fate == fate]

    def table(self) -> Table:
        """A row for each tensor."""
        rows = (
            (row.fate, row.public, row.ours, " x ".join(map(str, row.shape)) or "scalar", row.note) for row in self.rows
        )
        columns = ("fate", "in the file", "in the detector", "shape", "note")
        return Table(title=str(self.source), columns=columns, rows=tuple(rows))

    def __str__(self) -> str:
        counts = Counter(row.fate for row in self.rows)
        fates: tuple[Fate, ...] = ("used", "unused", "missing", "no place", "other shape")
        numbers = ", ".join(f"{counts[fate]} {fate}" for fate in fates if counts[fate] or fate == "missing")
        return f"{self.format}: {numbers}; {self.boxes}"


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """A checkpoint matched with a detector; `write` carries it out.

    expects: what a configuration must say for the file to fit; for messages.
    state: the detector's state with the file's tensors in their places.
    """

    report: ImportReport
    config: StudentConfig
    expects: str
    state: dict[str, Tensor]

    def write(self, out: Path, allow_missing: Sequence[str] = ()) -> None:
        """Write a checkpoint that `evaluate` runs and that `training.init_from` starts from.

        Args:
            allow_missing: patterns ("lift.*") of our tensors that may keep their initial values.

        Raises:
            ConfigError: `out` is there already, a shape differs, a tensor has no place, nothing fills one of ours that
                no pattern allows, or a pattern allows nothing.
        """
        if out.exists():
            raise ConfigError("a file is there already", where=out, cure="Remove it, or give another --out")
        self._refuse("other shape", "tensors of the checkpoint have other shapes than the detector's")
        self._refuse("no place", "the detector has no place for tensors of the checkpoint")
        missing = [row.ours for row in self.report.of("missing")]
        idle = [pattern for pattern in allow_missing if not any(fnmatchcase(name, pattern) for name in missing)]
        if idle:
            raise ConfigError("nothing missing fits the pattern", where="--allow-missing", got=", ".join(idle))
        refused = [name for name in missing if not any(fnmatchcase(name, pattern) for pattern in allow_missing)]
        if refused:
            raise ConfigError(
                "nothing in the checkpoint fills tensors of the detector",
                where=self.report.source,
                got=_abridged(refused),
                expected=self.expects,
                cure="Change the configuration, or let them keep their initial values with --allow-missing PATTERN",
            )
        save_student(out, self.state, self.config)

    def _refuse(self, fate: Fate, what: str) -> None:
        rows = self.report.of(fate)
        if rows:
            raise ConfigError(
                what,
                where=self.report.source,
                got=_abridged([str(row) for row in rows]),
                expected=self.expects,
                cure="Change the configuration's detector to the one of the checkpoint",
            )


def plan_import(path: Path, config: StudentConfig) -> ImportPlan:
    """Match a public checkpoint's tensors with those of a configuration's detector.

    Raises:
        DataError: the file cannot be read, belongs to no known detector or to one that cannot be taken over, or holds
            a value that is not finite.
        ConfigError: the detector's grid or depth bins are not the checkpoint's.
    """
    checkpoint = read_checkpoint(path, DataError)
    known = format_of(checkpoint.weights, path)
    _require_geometry(checkpoint.weights, config, path)
    weights, boxes, changed = _current_boxes(checkpoint, known)
    if known.displacements and config.detector.times > 1:
        weights, moved = to_velocities(weights, config.detector)
        changed |= dict.fromkeys(moved, "converted from metres moved to m/s")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        state = build_detector(config.detector).state_dict()
    rows = [_row(name, value, known, state, changed) for name, value in weights.items()]
    used = {row.ours: weights[row.public] for row in rows if row.fate == "used"}
    spoilt = [name for name, value in used.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise DataError("the checkpoint holds weights that are not finite", where=path, got=_abridged(spoilt))
    present = {row.ours for row in rows}
    # Files from before 2018 have no such counters, and nothing here reads them.
    absent = [name for name in state if name not in present and not name.endswith("num_batches_tracked")]
    rows += [Row(fate="missing", public="", ours=name, shape=tuple(state[name].shape)) for name in absent]
    filled = state | {name: value.to(state[name].dtype) for name, value in used.items()}
    report = ImportReport(source=path, format=known.name, boxes=boxes, rows=tuple(rows))
    return ImportPlan(report=report, config=config, expects=known.expects, state=filled)


def _row(name: str, value: Tensor, known: PublicFormat, state: dict[str, Tensor], changed: dict[str, str]) -> Row:
    rule = next((rule for rule in known.rules if rule.fits(name)), None)
    shape = tuple(value.shape)
    if rule is None:
        return Row(fate="no place", public=name, ours="", shape=shape, note="no rule knows it")
    ours = rule(name)
    if ours is None:
        return Row(fate="unused", public=name, ours="", shape=shape, note=rule.why)
    if ours not in state:
        return Row(fate="no place", public=name, ours=ours, shape=shape, note="the detector has no such tensor")
    expected = tuple(state[ours].shape)
    if shape != expected:
        return Row(fate="other shape", public=name, ours=ours, shape=shape, note=f"the detector's is {expected}")
    return Row(fate="used", public=name, ours=ours, shape=shape, note=changed.get(name, ""))


def _current_boxes(checkpoint: Checkpoint, known: PublicFormat) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The weights with boxes of mmdet3d 1.x, what was done in words, and a note on each tensor that changed."""
    version = checkpoint.mmdet3d_version
    if version is None and not known.old_boxes:
        return checkpoint.weights, "no boxes", {}
    if version is not None and not checkpoint.old_boxes:
        return checkpoint.weights, f"boxes of mmdet3d {version} as they are", {}
    weights, changed = to_current_boxes(checkpoint.weights)
    origin = "mmdet3d < 1.0 (the file names no version)" if version is None else f"mmdet3d {version}"
    return (
        weights,
        f"boxes of {origin} converted to those of 1.x",
        dict.fromkeys(changed, "converted to mmdet3d 1.x boxes"),
    )


def _require_geometry(weights: dict[str, Tensor], config: StudentConfig, path: Path) -> None:
    differences = geometry_differences(weights, config.detector)
    if differences:
        raise ConfigError(
            "the checkpoint was trained on another grid",
            where=path,
            got="; ".join(differences),
            cure="Change detector.grid, detector.z_range_m or detector.depth_m",
        )


def _abridged(names: Sequence[str], most: int = 4) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
