"""The points that a detector takes, read from the test pipeline of its mmdet3d configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cache.errors import TeacherError
from cache.spec import COLUMNS, PointPipeline

Config = Any
"""mmengine's Config."""
Step = Any
"""A step of an mmdet3d pipeline: mmengine's ConfigDict."""

_FROM_FILE = {
    "load_dim": 5,
    "shift_height": False,
    "use_color": False,
    "norm_intensity": False,
    "norm_elongation": False,
}
"""LoadPointsFromFile: what nuScenes' files and our points agree with."""
_LOADERS = {"LoadPointsFromFile", "LoadPointsFromMultiSweeps"}
_WITHOUT_EFFECT = {
    "BEVFusionLoadMultiViewImageFromFiles",
    "Collect3D",
    "DefaultFormatBundle3D",
    "ImageAug3D",
    "LoadAnnotations3D",
    "LoadMultiViewImageFromFiles",
    "NormalizeMultiviewImage",
    "ObjectNameFilter",
    "ObjectRangeFilter",
    "Pack3DDetInputs",
    "PadMultiViewImage",
}
"""Steps that leave the points as they are: they act on images and boxes, or pack."""


def type_name(part: Step) -> str:
    """The name of a step's or module's type, which pure-Python configurations give as the class itself."""
    kind = part["type"] if hasattr(part, "get") else part
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind).rsplit(".", 1)[-1])


def transforms_of(config: Config, loader: str) -> list:
    """The steps of a data loader's pipeline, within wrappers such as CBGSDataset."""
    dataset = config.get(loader, {}).get("dataset", {})
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return list(dataset.get("pipeline", []))


def point_pipeline(config: Config, hook: str | None = None) -> PointPipeline:
    """How the teacher's points are assembled from sweeps, by the configuration's test pipeline.

    Args:
        hook: what makes the points instead of the pipeline's steps, see `cache.spec.PointPipeline`.

    Raises:
        TeacherError: the pipeline loads no sweeps, other columns than the network takes, or holds a step that changes
            the points in a way that a dump does not repeat.
    """
    where = f"{config.filename}, test_dataloader.dataset.pipeline"
    steps = list(_flat(transforms_of(config, "test_dataloader"), where))
    sweeps = next((step for step in steps if type_name(step) == "LoadPointsFromMultiSweeps"), None)
    if hook is not None:
        return PointPipeline(hook=hook, columns=None, **_sweeps(sweeps or {"sweeps_num": 9}, where))
    if sweeps is None:
        raise TeacherError(
            "the teacher's points are not x, y, z, intensity and lag",
            where=where,
            got=f"no LoadPointsFromMultiSweeps among {[type_name(step) for step in steps]}",
            expected="LoadPointsFromMultiSweeps with use_dim=[0, 1, 2, 3, 4] (and sweeps_num=0 for a single sweep)",
        )
    columns = _columns(config, sweeps, where)
    for step in steps:
        _require_known(step, where)
    return PointPipeline(columns=columns, range_m=_range(config, steps, where), **_sweeps(sweeps, where))


def _flat(steps: list, where: str) -> Iterator[Step]:
    """The steps, with those within test-time augmentation of a single, unchanged pass."""
    for step in steps:
        if type_name(step) != "MultiScaleFlipAug3D":
            yield step
            continue
        ratio = step.get("pts_scale_ratio", 1)
        if step.get("flip", False) or ratio not in (1, [1]):
            raise TeacherError(
                "the teacher's test pipeline augments, and a dump runs it once",
                where=where,
                got=f"MultiScaleFlipAug3D with flip={step.get('flip', False)}, pts_scale_ratio={ratio}",
                expected="flip=False, pts_scale_ratio=1",
                cure="Take the configuration without test-time augmentation: its weights are the same",
            )
        yield from _flat(list(step.get("transforms", [])), where)


@contextmanager
def _reading(where: str, step: str, key: str) -> Iterator[None]:
    """Name the step and its key where a value is missing or of another kind."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise TeacherError(
            "a value of the teacher's test pipeline is missing or makes no sense",
            where=f"{where}, {step}.{key}",
            got=f"{type(error).__name__}: {error}",
        ) from error


def _sweeps(loader: Step, where: str) -> dict[str, Any]:
    with _reading(where, "LoadPointsFromMultiSweeps", "sweeps_num"):
        past_sweeps = int(loader.get("sweeps_num", 10))
    return {
        "past_sweeps": past_sweeps,
        "pad_empty_sweeps": loader.get("pad_empty_sweeps", False),
        "remove_close_m": 1.0 if loader.get("remove_close", False) else 0.0,
    }


def _columns(config: Config, loader: Step, where: str) -> tuple[int, ...]:
    """The columns of x, y, z, intensity and lag that the network takes."""
    dims = loader.get("use_dim", [0, 1, 2, 4])
    with _reading(where, "LoadPointsFromMultiSweeps", "use_dim"):
        columns = tuple(range(dims)) if isinstance(dims, int) else tuple(map(int, dims))
    taken = input_columns(config.model)
    if columns[:3] == (0, 1, 2) and set(columns) <= set(range(len(COLUMNS))) and taken in (None, len(columns)):
        return columns
    raise TeacherError(
        "the teacher's points are not those that its network takes",
        where=where,
        got=f"use_dim={dims}",
        expected=f"{taken or 5} of {', '.join(COLUMNS)} in LoadPointsFromMultiSweeps, such as use_dim=[0, 1, 2, 3, 4]",
    )


def input_columns(model: Any) -> int | None:
    """How many columns of the points the detector's voxel encoder takes; None where its configuration does not say."""
    encoder: Any = next((model[name] for name in ("pts_voxel_encoder", "voxel_encoder") if model.get(name)), {})
    return encoder.get("in_channels", encoder.get("num_features"))


def _range(config: Config, steps: list, where: str) -> tuple[float, ...] | None:
    """The smallest range of PointsRangeFilter where it is narrower than the detector's own, which drops the rest."""
    with _reading(where, "PointsRangeFilter", "point_cloud_range"):
        ranges = [tuple(map(float, s["point_cloud_range"])) for s in steps if type_name(s) == "PointsRangeFilter"]
    own = voxel_layer(config.model).get("point_cloud_range")
    if not ranges or own is None:
        return None
    low = tuple(max(one[axis] for one in ranges) for axis in range(3))
    high = tuple(min(one[axis] for one in ranges) for axis in range(3, 6))
    wider = all(a <= b for a, b in zip(low, own[:3], strict=True)) and all(
        a >= b for a, b in zip(high, own[3:], strict=True)
    )
    return None if wider else (*low, *high)


def voxel_layer(model: Any) -> Any:
    """The part of a model's configuration that holds voxel size and range; empty where it has none."""
    preprocessor = model.get("data_preprocessor") or {}
    return preprocessor.get("voxel_layer") or preprocessor.get("voxelize_cfg") or model.get("pts_voxel_layer") or {}


def _require_known(step: Step, where: str) -> None:
    """Refuse a step that is not known to leave the points as this project makes them."""
    name = type_name(step)
    if name in _WITHOUT_EFFECT or name == "PointsRangeFilter":
        return
    if name in _LOADERS:
        expected = _FROM_FILE if name == "LoadPointsFromFile" else {"load_dim": 5}
    elif name in _NEUTRAL:
        expected = _NEUTRAL[name]
    else:
        raise TeacherError(
            "the teacher's test pipeline has a step that a dump does not repeat",
            where=where,
            got=name,
            expected=f"some of {', '.join(sorted(_LOADERS | set(_NEUTRAL) | _WITHOUT_EFFECT | {'PointsRangeFilter'}))}",
            cure="Take the step out if it leaves the points as they are, or make them with `points: module:function`",
        )
    changed = {key: step[key] for key, value in expected.items() if key in step and not _equal(step[key], value)}
    changed |= {key: "missing" for key in _REQUIRED.get(name, ()) if key not in step}
    if changed:
        raise TeacherError(
            "a step of the teacher's test pipeline changes the points in a way that a dump does not repeat",
            where=where,
            got=f"{name} with {', '.join(f'{key}={value}' for key, value in changed.items())}",
            expected=", ".join(f"{key}={expected[key]}" for key in changed),
            cure="Take it out if the teacher was trained without it, or make its points with `points: module:function`",
        )


_NEUTRAL: dict[str, dict[str, Any]] = {
    "GlobalRotScaleTrans": {
        "rot_range": [0, 0],
        "scale_ratio_range": [1, 1],
        "translation_std": [0, 0, 0],
        "shift_height": False,
    },
    "RandomFlip3D": {"flip_ratio_bev_horizontal": 0, "flip_ratio_bev_vertical": 0, "flip_ratio": 0},
    "BEVFusionGlobalRotScaleTrans": {
        "rot_range": [0, 0],
        "scale_ratio_range": [1, 1],
        "resize_lim": [1, 1],
        "rot_lim": [0, 0],
        "trans_lim": 0,
    },
}
"""Augmentations, with the values at which they change nothing."""
_REQUIRED = {"GlobalRotScaleTrans": ("rot_range", "scale_ratio_range")}
"""Keys whose default values do change the points."""


def _equal(value: Any, neutral: Any) -> bool:
    """Whether a value is the neutral one; a single number stands for all axes."""
    if isinstance(neutral, list) and not isinstance(value, list | tuple):
        value = [value] * len(neutral)
    return list(value) == neutral if isinstance(neutral, list) else value == neutral
