"""What would stop a training hours from now, found before its first step."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import nn

from cache.errors import ConfigError, DataError
from cache.nuscenes.frames import Frames
from student.config.student import StudentConfig
from student.config.training import TrainingConfig

ADAM_MOMENTS = 2
"""Tensors that the optimiser keeps for each parameter."""


def resolve_devices(config: StudentConfig) -> StudentConfig:
    """The same with `devices` a number: the sequence of samples, and so a resumed training, depends on it.

    Raises:
        ConfigError: more devices than there are GPUs, or an option that needs a GPU or a compiler where there
            is none.
    """
    training, gpus = config.training, torch.cuda.device_count()
    devices = max(1, gpus) if training.devices == "auto" else training.devices
    if gpus and devices > gpus:
        raise ConfigError(
            "more devices than GPUs",
            where="training.devices",
            got=devices,
            expected=f"at most {gpus}",
            cure='Lower it, or say "auto"',
        )
    if not gpus:
        _require_nothing_of_a_gpu(training)
    if training.compile:
        _require_compiler()
    return config.model_copy(update={"training": training.model_copy(update={"devices": devices})})


def _require_nothing_of_a_gpu(training: TrainingConfig) -> None:
    asked = [("precision", training.precision == "16-mixed"), ("sync_batchnorm", training.sync_batchnorm)]
    for name, needs_gpu in asked:
        if needs_gpu:
            raise ConfigError(
                "there is no GPU, and an option needs one",
                where=f"training.{name}",
                got=getattr(training, name),
                cure="Train on a GPU, or leave it out (bf16-mixed runs on a CPU too)",
            )


def _require_compiler() -> None:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if not any(name and shutil.which(name) for name in names):
        raise ConfigError(
            "torch.compile needs a C++ compiler",
            where="training.compile",
            got="none of $CXX, g++, clang++ and c++ on the PATH",
            cure="Install one, or leave training.compile out",
        )


def validation_frames(config: StudentConfig, train: Frames) -> Frames | None:
    """The frames of data.val_split; None without validation.

    Raises:
        DataError: it has no key frame in this version, or no annotations.
    """
    if not config.training.validate_every:
        return None
    frames = train.of_splits(config.data.val_split)
    if not frames.label_counts().any():
        raise DataError(
            "the validation split has no annotations",
            where=f"{frames.version}, {config.data.val_split}",
            cure="Change data.val_split, or set training.validate_every to 0",
        )
    return frames


def require_room(out: Path, module: nn.Module, files: Sequence[Path], average: bool) -> None:
    """Insist that a run's folder can be written and has room for its checkpoints, one more while it is replaced.

    Args:
        files: the checkpoints that the run keeps.
        average: whether they hold an average of the weights beside the weights.

    Raises:
        ConfigError: it cannot, or has not.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            "the run's folder cannot be written", where=out, got=error.strerror, cure="Give another --out"
        ) from None
    size = checkpoint_bytes(module, average)
    needed, free = size * (1 + sum(not path.exists() for path in files)), shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(
            "the checkpoints will not fit on the disk",
            where=out,
            got=f"{free / 1e9:,.2f} GB free",
            expected=f"{needed / 1e9:,.2f} GB, {size / 1e9:,.2f} GB for each checkpoint",
            cure="Free some space, or give another --out",
        )


def checkpoint_bytes(module: nn.Module, average: bool) -> int:
    """Of the tensors in a checkpoint: weights, their average if there is one, and the optimiser's moments."""
    state = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in module.parameters() if value.requires_grad)
    return (1 + average) * state + ADAM_MOMENTS * trained
