"""Compare a configuration with the one whose text a checkpoint holds: shapes alone do not tell voxel sizes apart."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.errors import OfflineDistillWarning, TeacherError
from cache.teacher.mmdet3d_points import transforms_of, type_name, voxel_layer

Config = Any
"""mmengine's Config."""
Values = dict[str, Any]


def require_same_training(text: str | None, config: Config, checkpoint: Path) -> None:
    """Check that a checkpoint was trained with the voxels, classes and sweeps of a configuration, as its own text says.

    Another range is only warned of, since convolutions can run over it; so are other sweeps. A text that cannot be
    parsed, or says nothing of it, is no evidence. It is parsed, never run.

    Raises:
        TeacherError: the file was trained with voxels of another size, or with classes in another order.
    """
    recorded, own = recorded_values(text), values_of(config)
    for key, what, consequence in _DECISIVE:
        if key in recorded and not _close(recorded[key], own.get(key)):
            raise TeacherError(
                what,
                where=checkpoint,
                got=f"{recorded[key]} in its own configuration",
                expected=own.get(key),
                cure=f"Take the configuration that it was trained with: all shapes agree, and its {consequence} would "
                "be wrong",
            )
    for key in ("point_cloud_range", "sweeps_num", "use_dim"):
        if key in recorded and key in own and not _close(recorded[key], own[key]):
            warnings.warn(
                f"{checkpoint} was trained with {key} {recorded[key]}, and the configuration has {own[key]}",
                OfflineDistillWarning,
                stacklevel=2,
            )


_DECISIVE = (
    ("voxel_size", "the checkpoint was trained with another voxel size than the configuration's", "features"),
    ("classes", "the checkpoint was trained with classes in another order than the configuration's", "classes"),
)
"""Key, what is wrong where it differs, and what would be."""


def recorded_values(text: str | None) -> Values:
    """Voxel size, range, classes and sweeps that the text of a configuration states as plain values."""
    try:
        tree = ast.parse(text or "")
    except (SyntaxError, ValueError, RecursionError):
        return {}
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    values: Values = {}
    for layer in _found(assigned.get("model"), ("pts_voxel_layer", "voxel_layer", "voxelize_cfg")):
        values |= {key: _literal(layer[key]) for key in ("voxel_size", "point_cloud_range") if key in layer}
    tasks = [_literal(task["class_names"]) for task in _dicts(assigned.get("model")) if "class_names" in task]
    sweeps = [
        step
        for name in ("test_dataloader", "data", "test_pipeline")
        for step in _dicts(assigned.get(name))
        if _literal(step.get("type")) == "LoadPointsFromMultiSweeps"
    ]
    values |= {key: _literal(sweeps[-1][key]) for key in ("sweeps_num", "use_dim") if sweeps and key in sweeps[-1]}
    if tasks and all(isinstance(names, list) for names in tasks):
        values["classes"] = tasks
    return {key: value for key, value in values.items() if value is not None}


def values_of(config: Config) -> Values:
    """The same of a resolved configuration."""
    layer, head = voxel_layer(config.model), config.model.get("pts_bbox_head") or {}
    values = {key: list(layer[key]) for key in ("voxel_size", "point_cloud_range") if key in layer}
    if head.get("tasks"):
        values["classes"] = [list(task["class_names"]) for task in head["tasks"]]
    steps = [s for s in transforms_of(config, "test_dataloader") if type_name(s) == "LoadPointsFromMultiSweeps"]
    return values | {key: steps[0][key] for key in ("sweeps_num", "use_dim") if steps and key in steps[0]}


def _found(tree: ast.AST | None, names: tuple[str, ...]) -> Iterator[dict[str, ast.expr]]:
    """The dictionaries that are values of these keys."""
    for holder in _dicts(tree):
        for name in names:
            if name in holder:
                yield from list(_dicts(holder[name]))[:1]


def _dicts(tree: ast.AST | None) -> Iterator[dict[str, ast.expr]]:
    """Every dict(...) and {...} of a tree as a mapping of its text keys, the outermost first."""
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            yield {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _literal(node: ast.expr | None) -> Any:
    """A plain value, or None for what would have to be computed."""
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _close(one: Any, other: Any) -> bool:
    """Equal, numbers within 1e-6, whatever the kind of sequence."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) < 1e-6
    return bool(one == other)
