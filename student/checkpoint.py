"""A training's checkpoint -> the detector and the configuration it was trained with."""

import pickle
from pathlib import Path

import torch

from cache.errors import ConfigError, DataError
from student.config import StudentConfig
from student.detectors import BevDetector, build_detector

CONFIG_KEY = "student_config"
"""Where a checkpoint keeps the StudentConfig, as plain data."""


def load_student(checkpoint: Path) -> tuple[BevDetector, StudentConfig]:
    """The detector of a checkpoint of `train-student`, in eval mode, and its configuration; runs no code of the file's.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
    """
    cure = "Give the checkpoints/last.ckpt of a `train-student` run"
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        config = StudentConfig.parse(saved[CONFIG_KEY], where=checkpoint)
        detector = build_detector(config.detector)
        prefix = "detector."
        state = {
            key.removeprefix(prefix): value for key, value in saved["state_dict"].items() if key.startswith(prefix)
        }
        detector.load_state_dict(state)
    except FileNotFoundError:
        raise DataError("the student's checkpoint is missing", where=checkpoint, cure=cure) from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, ConfigError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError("not a student's checkpoint", where=checkpoint, got=first_line, cure=cure) from error
    return detector.eval(), config
