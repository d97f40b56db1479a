"""The teacher's first frame: whatever it returns is checked before a store is described by it."""

from typing import Any

import torch
from torch import Tensor, nn

from cache.dumping.config import DumpConfig
from cache.dumping.prepared import PreparedFrames
from cache.errors import ConfigError, OfflineDistillError, TeacherError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, PointPipeline, TeacherIdentity
from cache.teacher.base import Teacher, TeacherOutput

_ATTRIBUTES = {
    "identity": TeacherIdentity,
    "points": PointPipeline,
    "layer_grids": dict,
    "heatmap_grid": BevGrid,
    "canvas_grid": BevGrid,
}
_CURE = "Correct the teacher's code; cache.Teacher documents what it gives"


def run_first_frame(teacher: Teacher, prepared: PreparedFrames) -> TeacherOutput:
    """Prepare the first frame in its canonical view and run the teacher on it.

    Raises:
        TeacherError: the teacher is none, trains, or fails.
    """
    for name, kind in _ATTRIBUTES.items():
        value = getattr(teacher, name, None)
        _require(isinstance(value, kind), f"attribute {name}", type(value).__name__, kind.__name__)
    _require_frozen(teacher)
    frame = prepared[0]
    try:
        with torch.inference_mode():
            output = teacher(frame.views)
    except OfflineDistillError:
        raise
    except Exception as error:  # The teacher runs the user's code.
        raise TeacherError(
            "the teacher failed on the first frame",
            where=f"{teacher.identity.name}, token {frame.token}",
            got=f"{type(error).__name__}: {error}",
            cure=_CURE,
        ) from error
    _require(isinstance(output, TeacherOutput), "output", type(output).__name__, "TeacherOutput")
    return output


def require_sound(config: DumpConfig, teacher: Teacher, output: TeacherOutput) -> None:
    """Check types, shapes and values of the teacher's maps of one frame, and the names of its classes.

    Raises:
        ConfigError: a layer of the configuration is unknown.
        TeacherError: a map is not what `TeacherOutput` says, or does not fit its grid.
    """
    unknown = [name for name in config.layers if name not in output.layers]
    if unknown:
        raise ConfigError(
            "the teacher has no such layer",
            where=teacher.identity.name,
            got=", ".join(unknown),
            expected=f"some of {', '.join(output.layers)}",
            cure="Name some of these under `layers` of the configuration",
        )
    for name in config.layers:
        grid = teacher.layer_grids.get(name)
        _require(isinstance(grid, BevGrid), f"layer_grids[{name!r}]", type(grid).__name__, "BevGrid")
        _require_map(f"layer {name}", output.layers[name], 4, grid)
    _require_classes(teacher.identity)
    _require_heads(teacher, output)
    _require_map("canvas mask", output.canvas_mask, 3, teacher.canvas_grid, floating=False, finite=False)
    _require(output.canvas_mask.dtype == torch.bool, "canvas mask", output.canvas_mask.dtype, "torch.bool")


def _require_frozen(teacher: Teacher) -> None:
    """No module of the teacher trains, and no parameter requires a gradient."""
    modules: list[nn.Module] = [teacher] if isinstance(teacher, nn.Module) else []
    modules += [value for value in getattr(teacher, "__dict__", {}).values() if isinstance(value, nn.Module)]
    for module in modules:
        training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
        _require(not training, "modules", f"{len(training)} in training mode: {training[:1]}", "eval mode")
        learning = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        _require(
            not learning, "parameters", f"{len(learning)} require a gradient: {learning[:1]}", "requires_grad False"
        )


def _require_heads(teacher: Teacher, output: TeacherOutput) -> None:
    tasks, classes = len(teacher.identity.tasks), len(teacher.identity.classes)
    if output.heatmap is None:
        _require(not output.head_maps, "head_maps", ", ".join(output.head_maps), "none without a heatmap")
        return
    _require_map("heatmap", output.heatmap, 4, teacher.heatmap_grid, finite=False)
    _require(output.heatmap.shape[1] == classes, "heatmap, channels", output.heatmap.shape[1], f"{classes} classes")
    for name, maps in output.head_maps.items():
        _require_map(f"head map {name}", maps, 5, teacher.heatmap_grid, finite=False)
        _require(maps.shape[1] == tasks, f"head map {name}, rows", maps.shape[1], f"{tasks} tasks")


def _require_map(
    what: str, values: Any, dimensions: int, grid: BevGrid | None, floating: bool = True, finite: bool = True
) -> None:
    """One frame's map: a tensor of the right number of dimensions over its grid.

    Values of heatmap and head maps are checked where each sample is encoded.
    """
    _require(isinstance(values, Tensor), what, type(values).__name__, "a tensor")
    shape = tuple(values.shape)
    _require(len(shape) == dimensions and shape[0] == 1, what, shape, f"{dimensions} dimensions, 1 frame first")
    if grid is not None and shape[-2:] != grid.shape:
        raise TeacherError(
            "a map of the teacher does not fit its grid", where=what, got=shape[-2:], expected=grid.shape, cure=_CURE
        )
    if floating:
        _require(values.is_floating_point(), what, values.dtype, "a floating-point type")
    if finite:
        _require(bool(values.isfinite().all()), what, "NaN or infinity", "finite values")


def _require_classes(identity: TeacherIdentity) -> None:
    unknown = [name for name in identity.classes if name not in CLASSES]
    _require(not unknown and bool(identity.classes), "identity.tasks", ", ".join(unknown) or "no class", CLASSES)
    _require(len(set(identity.classes)) == len(identity.classes), "identity.tasks", "a class twice", "each once")


def _require(valid: bool, where: str, got: object, expected: object) -> None:
    if not valid:
        raise TeacherError(
            "the teacher's first frame is not what a dump needs", where=where, got=got, expected=expected, cure=_CURE
        )
