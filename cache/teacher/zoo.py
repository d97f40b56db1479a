"""mmdet3d's model zoo as teachers: every nuScenes configuration is built and run on a synthetic frame."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cache.errors import OfflineDistillError, TeacherError
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_config import mmdet3d_scope, zoo_configs
from cache.teacher.sparse import sparse_convolutions


@dataclass(frozen=True, kw_only=True)
class ZooTeacher:
    """One configuration of the model zoo."""

    name: str
    result: Literal["works", "needs spconv", "refused"]
    """`works` is what ran here; `needs spconv` what would run with it, but it is not installed."""
    spconv: bool
    """Whether it has sparse convolutions."""
    heatmap: bool
    head: str
    """Channels, rows and columns of the neck's output."""
    reason: str
    """Of a refusal."""


def survey_zoo(names: Sequence[str] = (), progress: Callable[[int, int], None] = lambda *_: None) -> list[ZooTeacher]:
    """Load each configuration with random weights, as a dump would.

    Args:
        names: configurations; all of the installed zoo that are named after nuScenes by default.
        progress: called with (done, total).

    Raises:
        TeacherError: mmdet3d is missing.
    """
    with mmdet3d_scope():
        chosen = names or [name for name in zoo_configs() if re.search(r"_nus-(3d|mono3d)", name)]
    found = []
    for done, name in enumerate(chosen, start=1):
        found.append(_try(name))
        progress(done, len(chosen))
    return found


def _try(name: str) -> ZooTeacher:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmdet3d's own, about its configurations.
            teacher = load_teacher(name, None)
    except OfflineDistillError as error:
        missing = isinstance(error, TeacherError) and "spconv is not installed" in error.what
        return ZooTeacher(
            name=name,
            result="needs spconv" if missing else "refused",
            spconv=missing,
            heatmap=False,
            head="",
            reason=error.what,
        )
    layer = teacher.layer_grids["head"]
    return ZooTeacher(
        name=name,
        result="works",
        spconv=bool(sparse_convolutions(teacher)),
        heatmap=teacher.has_heatmap,
        head=" x ".join(map(str, (teacher.head_channels, *layer.shape))),
        reason="",
    )
