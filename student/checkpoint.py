"""A student's checkpoint: the detector's weights beside the configuration that they belong to."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import ConfigError, DataError
from student.config import DetectorConfig, StudentConfig
from student.detectors import BevDetector, build_detector

CONFIG_KEY = "student_config"
"""Where a checkpoint keeps the StudentConfig, as plain data."""

_PREFIX = "detector."
_LOSSES = {"gaussian_overlap", "min_radius", "code_weights", "heatmap_weight", "boxes_weight", "decoding"}
_FREE: dict[str, Any] = {"image_weights": True, "depth_weight": True, "head": _LOSSES}
"""What of a DetectorConfig does not decide what its weights compute."""


def load_student(checkpoint: Path) -> tuple[BevDetector, StudentConfig]:
    """The detector of a checkpoint of `train-student` or `import-checkpoint`, in eval mode, and its configuration.

    Runs no code of the file's.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
    """
    cure = "Give the checkpoints/last.ckpt of a `train-student` run"
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        config = StudentConfig.parse(saved[CONFIG_KEY], where=checkpoint)
        # The weights are all here: the file that the training began with need not be.
        detector = build_detector(config.detector.model_copy(update={"image_weights": None}))
        named = saved["state_dict"].items()
        detector.load_state_dict({key.removeprefix(_PREFIX): value for key, value in named if key.startswith(_PREFIX)})
    except FileNotFoundError:
        raise DataError("the student's checkpoint is missing", where=checkpoint, cure=cure) from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, ConfigError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError("not a student's checkpoint", where=checkpoint, got=first_line, cure=cure) from error
    return detector.eval(), config


def save_student(path: Path, state: dict[str, Tensor], config: StudentConfig) -> None:
    """Write a detector's state dict as a checkpoint that `load_student` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {_PREFIX + name: value for name, value in state.items()}
    torch.save({CONFIG_KEY: config.model_dump(mode="json"), "state_dict": weights}, path)


def start_from(detector: BevDetector, checkpoint: Path) -> None:
    """Give a detector the weights of a student's checkpoint, all of them.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
        ConfigError: its detector is another, or its grid, images or tasks are.
    """
    other, config = load_student(checkpoint)
    differences = list(_differences(_function(config.detector), _function(detector.config), "detector"))
    if differences:
        raise ConfigError(
            "the checkpoint to start from is another detector's",
            where=checkpoint,
            got="; ".join(differences),
            cure="Give training.init_from a checkpoint of the same detector, or change the configuration",
        )
    detector.load_state_dict(other.state_dict())


def _function(config: DetectorConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_FREE)


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs:
            yield from _differences(theirs[key], ours[key], f"{path}.{key}")
    elif theirs != ours:
        yield f"{path}: the checkpoint's {theirs}, the configuration's {ours}"
