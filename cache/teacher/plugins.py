"""Teachers and `points` hooks of the user's own code, named as `module:function`."""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from cache.errors import OfflineDistillError, TeacherError
from cache.nuscenes.frames import Frame
from cache.nuscenes.points import load_points
from cache.spec import PointPipeline
from cache.teacher.base import Teacher

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_plugin(name: str) -> bool:
    """Whether a teacher's name is `module:function` rather than an mmdet3d configuration."""
    return _NAME.fullmatch(name) is not None


def imported(name: str, purpose: str) -> Callable[..., Any]:
    """The function `module:function`; the module is looked for in the working directory as well.

    Raises:
        TeacherError: the name is none, the module cannot be imported, or has no such function.
    """
    if not is_plugin(name):
        raise TeacherError(f"{purpose} is not named as a function of a module", got=name, expected="module:function")
    module_name, _, function_name = name.partition(":")
    look_in_working_directory()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # The user's module runs its own code.
        raise TeacherError(
            f"the module of {purpose} cannot be imported",
            where=name,
            got=f"{type(error).__name__}: {error}",
            cure="Run the command where the module lies, or install it",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = f"the module of {purpose} has no such function"
        raise TeacherError(what, where=name, got=", ".join(names) or "no function", expected=function_name)
    return function


def look_in_working_directory() -> None:
    """Import modules from the working directory as well, as `python` does and an installed command does not."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def make_teacher(name: str, checkpoint: Path | None, device: str) -> Teacher:
    """A teacher of the user's own: `module:factory` called with (checkpoint, device).

    Raises:
        TeacherError: the factory cannot be imported, fails, or makes no Teacher.
    """
    factory = imported(name, "the teacher")
    try:
        made = factory(checkpoint, device)
    except OfflineDistillError:
        raise
    except Exception as error:  # The user's factory runs its own code.
        raise TeacherError(
            "the teacher's factory failed",
            where=f"{name}({checkpoint}, {device!r})",
            got=f"{type(error).__name__}: {error}",
            expected="a function of (checkpoint, device); checkpoint is None for random weights",
        ) from error
    missing = [part for part in _TEACHER_PARTS if not hasattr(made, part)]
    if missing or not callable(made):
        got = f"{type(made).__name__} without {', '.join(missing) or '__call__'}"
        raise TeacherError("the factory made no teacher", where=name, got=got, expected="cache.Teacher")
    return cast(Teacher, made)


_TEACHER_PARTS = ("identity", "points", "layer_grids", "heatmap_grid", "canvas_grid", "prepare", "head_weights")


@dataclass(frozen=True, kw_only=True)
class PointsHook:
    """A function (frame, points) -> points of the user's, which loader workers import by its name.

    It gets the frame (images' paths and calibrations in the key frame's LiDAR) and its accumulated points: x, y, z,
    intensity, lag. It returns float32 points whose first columns are x, y, z in the same frame.
    """

    name: str

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return imported(self.name, "the points hook")

    @property
    def sha256(self) -> str:
        """Of the source of the function's module."""
        source = inspect.getsourcefile(self.function)
        return hashlib.sha256(Path(source).read_bytes() if source else self.name.encode()).hexdigest()

    def __call__(self, frame: Frame, points: Float[np.ndarray, "N 5"]) -> Float[np.ndarray, "M C"]:
        """The points that the teacher takes.

        Raises:
            TeacherError: the function failed, or returned no finite float32 (M, C >= 3).
        """
        try:
            made = self.function(frame, points)
        except Exception as error:  # The user's function runs its own code.
            raise TeacherError(
                "the points hook failed", where=self.name, got=f"{type(error).__name__}: {error}"
            ) from error
        valid = isinstance(made, np.ndarray) and made.dtype == np.float32 and made.ndim == 2 and made.shape[1] >= 3
        if not valid or not np.isfinite(made).all():
            got = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
            raise TeacherError(
                "the points hook returned no points",
                where=self.name,
                got=got + (", not all finite" if valid else ""),
                expected="finite float32 (M, C), x, y, z first",
            )
        return made


def with_hook(points: PointPipeline, name: str | None) -> PointPipeline:
    """The pipeline with the hook of a dump's configuration, and the hash of its source; unchanged for None."""
    if name is None:
        return points
    return points.model_copy(update={"hook": name, "hook_sha256": PointsHook(name=name).sha256})


def hooked(frame: Frame, points: Float[np.ndarray, "N 5"], pipeline: PointPipeline) -> Float[np.ndarray, "M C"]:
    """A frame's accumulated points as its pipeline's hook leaves them."""
    return points if pipeline.hook is None else PointsHook(name=pipeline.hook)(frame, points)


def teacher_points(frame: Frame, pipeline: PointPipeline) -> Float[np.ndarray, "M C"]:
    """The points of a frame as a teacher takes them, before any view.

    Raises:
        DataError: see `load_points`.
        TeacherError: see `PointsHook`.
    """
    return hooked(frame, load_points(frame, pipeline), pipeline)
