"""A student's checkpoint: the detector's weights beside the configuration that they belong to."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.config import differing
from cache.errors import ConfigError, DataError
from student.config.student import DetectorConfig, StudentConfig
from student.models.detectors import BevDetector, build_detector

CONFIG_KEY = "student_config"
"""Where a checkpoint keeps the StudentConfig, as plain data."""

WEIGHTS_KEY = "student_weights"
"""Where a checkpoint says which weights `state_dict` holds: "average" (training.ema) or "trained"."""

MAY_CHANGE: dict[str, Any] = {
    "data": {"val_split", "workers"},
    "detector": {"image_weights"},
    "training": {
        *("epochs", "init_from", "precision", "compile", "activation_checkpointing"),
        *("validate_every", "checkpoint_every_steps"),
    },
}
"""What of a StudentConfig a resumed training may set otherwise; the sequence of samples does not depend on these."""

_PREFIX = "detector."
_LOSSES = {"gaussian_overlap", "min_radius", "code_weights", "heatmap_weight", "boxes_weight", "decoding"}
_FREE: dict[str, Any] = {"image_weights": True, "depth_weight": True, "head": _LOSSES}
"""What of a DetectorConfig does not decide what its weights compute."""


def describe(config: StudentConfig) -> dict[str, Any]:
    """What a checkpoint says of itself; beside an average, its `current_model_state` has the trained weights."""
    weights = "trained" if config.training.ema is None else "average"
    return {CONFIG_KEY: config.model_dump(mode="json"), WEIGHTS_KEY: weights}


def load_student(checkpoint: Path) -> tuple[BevDetector, StudentConfig]:
    """The detector of a checkpoint of `train-student` or `import-checkpoint`, in eval mode, and its configuration.

    With training.ema the weights are their average. Runs no code of the file's.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
    """
    saved, config = _read(checkpoint)
    try:
        # The weights are all here: the file that the training began with need not be.
        detector = build_detector(config.detector.model_copy(update={"image_weights": None}))
        named = saved["state_dict"].items()
        detector.load_state_dict({key.removeprefix(_PREFIX): value for key, value in named if key.startswith(_PREFIX)})
    except (RuntimeError, KeyError, TypeError, ConfigError) as error:
        raise _not_a_checkpoint(checkpoint, error) from error
    return detector.eval(), config


def step_to_resume(checkpoint: Path, config: StudentConfig) -> int:
    """The step of the optimiser that a checkpoint was saved after.

    Raises:
        DataError: the file is missing or is not a checkpoint of `train-student`.
        ConfigError: its training had another configuration.
    """
    saved, earlier = _read(checkpoint)
    before, now = (values.model_dump(mode="json", exclude=MAY_CHANGE) for values in (earlier, config))
    differences = _differences(before, now)
    if differences:
        raise ConfigError(
            "the run was begun with another configuration",
            where=checkpoint,
            got=differences,
            cure="Resume with the run's own configuration, or begin another run with another --out",
        )
    if "global_step" not in saved:
        raise _not_a_checkpoint(checkpoint, KeyError("global_step"))
    return saved["global_step"]


def save_student(path: Path, state: dict[str, Tensor], config: StudentConfig) -> None:
    """Write a detector's state dict as a checkpoint that `load_student` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {_PREFIX + name: value for name, value in state.items()}
    torch.save(describe(config) | {"state_dict": weights}, path)


def start_from(detector: BevDetector, checkpoint: Path) -> None:
    """Give a detector the weights of a student's checkpoint, all of them.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
        ConfigError: its detector is another, or its grid, images or tasks are.
    """
    other, config = load_student(checkpoint)
    differences = _differences(_function(config.detector), _function(detector.config))
    if differences:
        raise ConfigError(
            "the checkpoint to start from is another detector's",
            where=checkpoint,
            got=differences,
            cure="Give training.init_from a checkpoint of the same detector, or change the configuration",
        )
    detector.load_state_dict(other.state_dict())


def _function(config: DetectorConfig) -> dict[str, Any]:
    return {"detector": config.model_dump(mode="json", exclude=_FREE)}


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    leaves = differing(theirs, ours)
    return "; ".join(f"{path}: the checkpoint's {before}, the configuration's {now}" for path, before, now in leaves)


def _read(checkpoint: Path) -> tuple[dict[str, Any], StudentConfig]:
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return saved, StudentConfig.parse(saved[CONFIG_KEY], where=checkpoint)
    except FileNotFoundError:
        raise DataError("the student's checkpoint is missing", where=checkpoint, cure=_CURE) from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, ConfigError) as error:
        raise _not_a_checkpoint(checkpoint, error) from error


_CURE = "Give the checkpoints/last.ckpt or best.ckpt of a `train-student` run"


def _not_a_checkpoint(checkpoint: Path, error: Exception) -> DataError:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError("not a student's checkpoint", where=checkpoint, got=first_line, cure=_CURE)
