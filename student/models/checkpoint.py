"""Student checkpoints: the detector's weights and its configuration in one file."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.config import differing
from cache.errors import ConfigError, DataError
from cache.store.atomic import write_durably
from cache.teacher.state_dict import load_state_dict
from student.config.student import StudentConfig
from student.models.detectors import BevDetector, build_detector

CONFIG_KEY = "student_config"
"""Key of the StudentConfig, as plain data."""

WEIGHTS_KEY = "student_weights"
"""Key of which weights `state_dict` holds: "average" (training.ema) or "trained"."""

MAY_CHANGE: dict[str, Any] = {
    "data": {"val_split", "workers", "local_cache", "local_cache_gb"},
    "detector": {"image_weights"},
    "training": {
        *("devices", "nodes", "batch_size", "accumulate"),  # the samples of a step stay the same
        *("epochs", "init_from", "precision", "compile", "activation_checkpointing", "channels_last"),
        *("validate_every", "checkpoint_every_steps", "log_gradients_every"),
    },
}
"""Settings that a resumed training may change; the sequence of samples does not depend on them."""

DIGEST_KEY = "digest"
"""Key that says that the file ends with its digest; checkpoints of earlier versions have neither."""

_DIGEST = b"sha256:"
_COMMENT_BYTES = len(_DIGEST) + 64
_PREFIX = "detector."
_LOSSES = {"gaussian_overlap", "min_radius", "code_weights", "heatmap_weight", "boxes_weight", "decoding"}
_FREE: dict[str, Any] = {"image_weights": True, "depth_weight": True, "head": _LOSSES}
"""Settings of a DetectorConfig that do not change what its weights compute."""


def checkpoint_metadata(config: StudentConfig) -> dict[str, Any]:
    """The metadata of a checkpoint; beside an average, its `current_model_state` holds the trained weights."""
    weights = "trained" if config.training.ema is None else "average"
    return {CONFIG_KEY: config.model_dump(mode="json"), WEIGHTS_KEY: weights, DIGEST_KEY: _DIGEST.decode()}


def checkpoint_bytes(checkpoint: dict[str, Any]) -> bytes:
    """A checkpoint as the bytes of its file, which ends with their digest: the comment of torch's zip archive."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    length = _COMMENT_BYTES.to_bytes(2, "little")
    archive = content.getvalue()[:-2] + length  # which ends with the length of a comment, 0 as torch writes it
    return archive + _DIGEST + hashlib.sha256(archive).hexdigest().encode()


def require_digest(checkpoint: Path) -> bool:
    """Compare a checkpoint's bytes with the digest at its end; false where there is none.

    Raises:
        OSError: it cannot be read.
        DataError: it differs.
    """
    with checkpoint.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _COMMENT_BYTES))
        stored = file.read()
        if not stored.startswith(_DIGEST):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - len(stored)
        while left:
            part = file.read(min(left, 2**20))
            digest.update(part)
            left -= len(part)
    if stored[len(_DIGEST) :] != digest.hexdigest().encode():
        raise _damaged(checkpoint)
    return True


def load_student(checkpoint: Path) -> tuple[BevDetector, StudentConfig]:
    """Load the detector of a checkpoint of `train-student` or `import-checkpoint`, in eval mode, and its configuration.

    With training.ema the weights are the averaged ones. No code of the file is run.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
    """
    saved, config = _read(checkpoint)
    try:
        detector = build_detector(config.detector)
        named = saved["state_dict"].items()
        weights = {key.removeprefix(_PREFIX): value for key, value in named if key.startswith(_PREFIX)}
        match = load_state_dict(detector, weights)
    except (RuntimeError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise _not_a_checkpoint(checkpoint, error) from error
    if match:
        raise _not_a_checkpoint(checkpoint, match)
    return detector.eval(), config


def step_to_resume(checkpoint: Path, config: StudentConfig) -> int:
    """The number of optimiser steps before a checkpoint was saved.

    Raises:
        DataError: the file is missing or is not a checkpoint of `train-student`.
        ConfigError: its training's configuration differs in other settings than MAY_CHANGE, or a step had more or fewer
            samples.
    """
    saved, earlier = _read(checkpoint)
    before, now = (values.model_dump(mode="json", exclude=MAY_CHANGE) for values in (earlier, config))
    cure = "Resume with the run's own configuration, or begin another run with another --out"
    _require_equal(before, now, "the run was begun with another configuration", checkpoint, cure)
    samples, wanted = config.training.samples_per_step, earlier.training.samples_per_step
    if samples != wanted:
        raise ConfigError(
            "a step of the run has another number of samples",
            where=f"{checkpoint}, training.batch_size x accumulate x devices x nodes",
            got=samples,
            expected=wanted,
            cure="Change one of the four, for example accumulate where there are fewer devices than before",
        )
    if "global_step" not in saved:
        raise _not_a_checkpoint(checkpoint, KeyError("global_step"))
    return saved["global_step"]


def save_student(path: Path, state: dict[str, Tensor], config: StudentConfig) -> None:
    """Write a detector's state dict as a checkpoint that `load_student` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {_PREFIX + name: value for name, value in state.items()}
    write_durably(path, checkpoint_bytes(checkpoint_metadata(config) | {"state_dict": weights}))


def start_from(detector: BevDetector, checkpoint: Path) -> None:
    """Load all weights of a student's checkpoint into a detector.

    Raises:
        DataError: the file is missing or is not such a checkpoint.
        ConfigError: its detector, grid, images or tasks differ.
    """
    other, config = load_student(checkpoint)
    theirs, ours = ({"detector": c.model_dump(mode="json", exclude=_FREE)} for c in (config.detector, detector.config))
    cure = "Give training.init_from a checkpoint of the same detector, or change the configuration"
    _require_equal(theirs, ours, "the checkpoint to start from is another detector's", checkpoint, cure)
    detector.load_state_dict(other.state_dict())


def _require_equal(theirs: dict[str, Any], ours: dict[str, Any], what: str, checkpoint: Path, cure: str) -> None:
    leaves = differing(theirs, ours)
    got = "; ".join(f"{path}: the checkpoint's {before}, the configuration's {now}" for path, before, now in leaves)
    if got:
        raise ConfigError(what, where=checkpoint, got=got, cure=cure)


def _read(checkpoint: Path) -> tuple[dict[str, Any], StudentConfig]:
    try:
        sound = require_digest(checkpoint)
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        if DIGEST_KEY in saved and not sound:
            raise _damaged(checkpoint)
        return saved, StudentConfig.parse(saved[CONFIG_KEY], where=checkpoint)
    except FileNotFoundError:
        raise DataError("the student's checkpoint is missing", where=checkpoint, cure=_CURE) from None
    except OSError as error:
        raise DataError(
            "the student's checkpoint cannot be read", where=checkpoint, got=error.strerror, cure=_CURE
        ) from error
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, ConfigError) as error:
        raise _not_a_checkpoint(checkpoint, error) from error


_CURE = "Give the checkpoints/last.ckpt or best.ckpt of a `train-student` run"


def _damaged(checkpoint: Path) -> DataError:
    return DataError(
        "the checkpoint does not match the digest that it was saved with",
        where=checkpoint,
        cure="Copy it again from where it was saved, or go on from another checkpoint",
    )


def _not_a_checkpoint(checkpoint: Path, error: object) -> DataError:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError("not a student's checkpoint", where=checkpoint, got=first_line, cure=_CURE)
