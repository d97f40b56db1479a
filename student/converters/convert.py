"""Convert a public checkpoint to a student's, for evaluation or further training; every tensor is accounted for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from cache.teacher.checkpoint import Checkpoint, read_checkpoint, to_current_boxes
from cache.teacher.state_dict import StateDictMatch, abridged, match_state_dict, not_finite
from student.config.student import StudentConfig
from student.converters.formats import PublicFormat, Rule, format_of, geometry_differences, to_velocities
from student.models.checkpoint import save_student
from student.models.detectors import build_detector

Status = Literal["used", "unused", "missing", "no place", "other shape"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the file, or one of the detector that the file does not fill ("missing").

    public: its name in the file; "" where the file has none.
    ours: its name in the detector; "" where the detector has none.
    shape: the file's, or the detector's where the file has none.
    note: what was changed, or why it is not used.
    """

    status: Status
    public: str
    ours: str
    shape: tuple[int, ...]
    note: str = ""

    def __str__(self) -> str:
        names = " -> ".join(name for name in (self.public, self.ours) if name)
        return f"{names} {self.shape}{f': {self.note}' if self.note else ''}"


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Every tensor of a file and of a detector.

    format: the family that the file belongs to.
    boxes: how the box convention was converted.
    """

    source: Path
    format: str
    boxes: str
    rows: tuple[Row, ...]

    def of(self, status: Status) -> list[Row]:
        """The rows of one status."""
        return [row for row in self.rows if row.status == status]

    def __str__(self) -> str:
        counts = Counter(row.status for row in self.rows)
        numbers = (f"{counts[s]} {s}" for s in get_args(Status) if counts[s] or s == "missing")
        return f"{self.format}: {', '.join(numbers)}; {self.boxes}"


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """A checkpoint matched with a detector; `write` writes the student's checkpoint.

    expects: the configuration that fits the file; for messages.
    state: the detector's state dict with the file's tensors filled in.
    """

    report: ImportReport
    config: StudentConfig
    expects: str
    state: dict[str, Tensor]

    def write(self, out: Path, allow_missing: Sequence[str] = ()) -> None:
        """Write a checkpoint for `evaluate` and for `training.init_from`.

        Args:
            allow_missing: patterns ("lift.*") of the detector's tensors that may keep their initial values.

        Raises:
            ConfigError: `out` exists, a shape differs, a tensor of the file has no place, one of the detector is
                missing and no pattern allows it, or a pattern matches nothing.
        """
        if out.exists():
            raise ConfigError("a file is there already", where=out, cure="Remove it, or give another --out")
        fix = "Change the configuration's detector to the one of the checkpoint"
        what = "tensors of the checkpoint have other shapes than the detector's"
        self._require_none(self.report.of("other shape"), what, fix)
        self._require_none(self.report.of("no place"), "the detector has no place for tensors of the checkpoint", fix)
        missing = [row.ours for row in self.report.of("missing")]
        idle = [pattern for pattern in allow_missing if not any(fnmatchcase(name, pattern) for name in missing)]
        if idle:
            raise ConfigError(
                "nothing missing fits the pattern",
                where="--allow-missing",
                got=", ".join(idle),
                expected=f"patterns of {abridged(missing)}" if missing else "no pattern: nothing is missing",
                cure="Correct the pattern, or leave it out",
            )
        refused = [name for name in missing if not any(fnmatchcase(name, pattern) for pattern in allow_missing)]
        fix = "Change the configuration, or let them keep their initial values with --allow-missing PATTERN"
        self._require_none(refused, "nothing in the checkpoint fills tensors of the detector", fix)
        save_student(out, self.state, self.config)

    def _require_none(self, tensors: Sequence[object], what: str, cure: str) -> None:
        if tensors:
            got = abridged(tensors, separator="; ")
            raise ConfigError(what, where=self.report.source, got=got, expected=self.expects, cure=cure)


def plan_import(path: Path, config: StudentConfig) -> ImportPlan:
    """Match a public checkpoint's tensors with those of a configuration's detector.

    Raises:
        DataError: the file cannot be read, belongs to no known detector or to one that cannot be converted, or holds
            a value that is not finite.
        ConfigError: the detector's grid or depth bins are not the checkpoint's.
    """
    checkpoint = read_checkpoint(path, DataError)
    known = format_of(checkpoint.weights, path)
    _require_geometry(checkpoint.weights, config, path)
    weights, boxes, changed = _current_boxes(checkpoint, known)
    if known.displacements and config.detector.times > 1:
        weights, scaled = to_velocities(weights, config.detector)
        changed |= dict.fromkeys(scaled, "converted from metres moved to m/s")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        state = build_detector(config.detector).state_dict()
    rules = {name: known.rule(name) for name in weights}
    names = {name: ours for name, rule in rules.items() if rule is not None and (ours := rule(name)) is not None}
    match = match_state_dict({ours: weights[name] for name, ours in names.items()}, state)
    rows = [_row(name, value, rules[name], names.get(name), match, changed) for name, value in weights.items()]
    rows += [Row(status="missing", public="", ours=name, shape=tuple(state[name].shape)) for name in match.missing]
    used = {row.ours: weights[row.public] for row in rows if row.status == "used"}
    if bad := not_finite(used):
        got = abridged(bad, separator="; ")
        cure = "Take another checkpoint of that training, or copy this one again"
        raise DataError("the checkpoint holds weights that are not finite", where=path, got=got, cure=cure)
    filled = state | {name: value.to(state[name].dtype) for name, value in used.items()}
    report = ImportReport(source=path, format=known.name, boxes=boxes, rows=tuple(rows))
    return ImportPlan(report=report, config=config, expects=known.expects, state=filled)


def _row(
    name: str, value: Tensor, rule: Rule | None, ours: str | None, match: StateDictMatch, changed: dict[str, str]
) -> Row:
    status: Status = "used"
    note = changed.get(name, "")
    if rule is None:
        status, note = "no place", "no rule knows it"
    elif ours is None:
        status, note = "unused", rule.why
    elif ours in match.unexpected:
        status, note = "no place", "the detector has no such tensor"
    elif ours in match.mismatched:
        status, note = "other shape", f"the detector's is {match.mismatched[ours][1]}"
    return Row(status=status, public=name, ours=ours or "", shape=tuple(value.shape), note=note)


def _current_boxes(checkpoint: Checkpoint, known: PublicFormat) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The weights with boxes of mmdet3d 1.x, a description of the conversion, and a note on each tensor it changed."""
    version = checkpoint.mmdet3d_version
    if version is None and not known.old_boxes:
        return checkpoint.weights, "no boxes", {}
    if version is not None and not checkpoint.old_boxes:
        return checkpoint.weights, f"boxes of mmdet3d {version} as they are", {}
    weights, changed = to_current_boxes(checkpoint.weights)
    origin = "mmdet3d < 1.0 (the file names no version)" if version is None else f"mmdet3d {version}"
    notes = dict.fromkeys(changed, "converted to mmdet3d 1.x boxes")
    return weights, f"boxes of {origin} converted to those of 1.x", notes


def _require_geometry(weights: dict[str, Tensor], config: StudentConfig, path: Path) -> None:
    differences = geometry_differences(weights, config.detector)
    if differences:
        raise ConfigError(
            "the checkpoint was trained on another grid",
            where=path,
            got="; ".join(differences),
            cure="Change detector.grid, detector.z_range_m or detector.depth_m",
        )
