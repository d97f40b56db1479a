"""Load checkpoints of mmengine, mmcv or plain PyTorch: all weights, finite, and without running the file's pickle."""

import hashlib
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cache.errors import ConfigError, OfflineDistillError, OfflineDistillWarning, TeacherError
from cache.teacher.foreign import require_own_kind
from cache.teacher.state_dict import abridged, load_state_dict, not_finite

# What mmengine's checkpoints hold beside weights (the log's history, numbers of the data set) is read into an inert
# placeholder, so that none of these names is ever called for an untrusted file.
_SET_ASIDE = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
)


class _Inert:
    """Placeholder for an object of a pickle that is not needed."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's content, as far as it is weights or says where they come from.

    weights: by name, without the `module.` that DataParallel puts before all of them.
    versions: of the modules that wrote them (`_metadata` of torch's state dicts); empty where a file has none.
    mmdet3d_version: of the mmdet3d that wrote the file, if it names one (until 1.0).
    config_text: the configuration that the file was trained with, as Python text, if it holds one.
    """

    weights: dict[str, Tensor]
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    mmdet3d_version: str | None = None
    config_text: str | None = None

    @property
    def old_boxes(self) -> bool:
        """Whether its boxes are those of mmdet3d < 1.0."""
        return self.mmdet3d_version is not None and self.mmdet3d_version.startswith("0.")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a checkpoint's file does not say, or says wrongly.

    boxes: the convention of its boxes: of mmdet3d < 1.0 ("old"), of 1.x ("new"), or as the version in the file says.
    averaged: where the state dict holds an exponential moving average (`ema_...`) beside the weights: take which one.
    """

    boxes: Literal["auto", "old", "new"] = "auto"
    averaged: bool | None = None

    @classmethod
    def of(cls, boxes: str, averaged: bool | None) -> "LoadOptions":
        """From the command line's values.

        Raises:
            ConfigError: `boxes` is none of the conventions.
        """
        if boxes not in ("auto", "old", "new"):
            raise ConfigError("unknown convention of boxes", where="--boxes", got=boxes, expected="auto, old or new")
        return cls(boxes=cast(Literal["auto", "old", "new"], boxes), averaged=averaged)


def load_weights(detector: nn.Module, path: Path, options: LoadOptions | None = None) -> Checkpoint:
    """Load a checkpoint of mmengine (or a plain state dict) into a detector, all of it, without running its pickle.

    Every tensor of the detector is compared with the file's after loading.

    Returns:
        The checkpoint, with boxes of mmdet3d 1.x.

    Raises:
        TeacherError: the file is missing, is no checkpoint, holds more than weights, is another framework's, fits
            another detector, or holds a value that is not finite.
    """
    options = options or LoadOptions()
    checkpoint = read_checkpoint(Path(path))
    checkpoint = replace(checkpoint, weights=_plain_or_averaged(checkpoint.weights, options.averaged, path))
    require_own_kind(checkpoint.weights, path)
    if options.boxes == "old" or (options.boxes == "auto" and checkpoint.old_boxes):
        weights, changed = to_current_boxes(checkpoint.weights)
        checkpoint = replace(checkpoint, weights=weights)
        if changed:  # Detectors without a centre head have none.
            _warn_of_old_boxes(path, checkpoint, len(changed))
    match = load_state_dict(detector, checkpoint.weights, checkpoint.versions)
    if match:
        raise TeacherError(
            "the checkpoint belongs to another detector",
            where=path,
            got=match,
            cure="Pair the checkpoint with the configuration that it was trained with",
        )
    broken = not_finite(detector.state_dict())
    if broken:
        raise TeacherError(
            "the checkpoint holds weights that are not finite",
            where=path,
            got=abridged(broken),
            cure="Take another checkpoint of that training, or copy this one again",
        )
    return checkpoint


def _warn_of_old_boxes(path: Path, checkpoint: Checkpoint, changed: int) -> None:
    trained = f"mmdet3d {checkpoint.mmdet3d_version}" if checkpoint.old_boxes else "an old mmdet3d, as you say"
    warnings.warn(
        f"{path} was trained with {trained}, whose boxes swap width and length and turn "
        f"yaw; the centre head's last convolutions were converted to mmdet3d 1.x ({changed} tensors)",
        OfflineDistillWarning,
        stacklevel=3,
    )


def _plain_or_averaged(weights: dict[str, Tensor], averaged: bool | None, path: Path) -> dict[str, Tensor]:
    """The weights without mmcv's `ema_` buffers, or with them in the weights' place.

    mmcv 1.x's EMAHook keeps the average of `a.b.weight` as the buffer `ema_a_b_weight`.
    """
    plain = {name: value for name, value in weights.items() if not name.startswith("ema_")}
    average = {name: weights[key] for name in plain if (key := f"ema_{name.replace('.', '_')}") in weights}
    if not average or len(plain) + len(average) != len(weights):
        return weights
    if averaged is None:
        raise TeacherError(
            "the checkpoint holds two sets of weights: its own, and their moving average",
            where=path,
            got=f"{len(average)} tensors ema_... of {len(plain)}",
            cure="Say which: --ema for the average, --no-ema for the others",
        )
    return plain | average if averaged else plain


_BOX_OUTPUTS = re.compile(r"task_heads\.\d+\.(?:task_head\.)?(dim|rot)\.\d+\.(?:weight|bias)$")
"""The last convolution of a centre head's size and heading branches; the ones before it end in conv.* and bn.*."""


def to_current_boxes(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A centre head of mmdet3d < 1.0 as one of mmdet3d 1.x, exactly, and the names of the tensors that changed.

    Until 1.0 boxes were (width, length, height) with yaw = -(yaw of 1.x) - pi / 2 (mmdet3d's docs, "coordinate system
    refactoring"). So `dim` swaps its first two outputs, and `rot`, with sin(-a - pi/2) = -cos(a) and
    cos(-a - pi/2) = -sin(a), swaps its two and changes their signs.
    """
    changed = {
        name: value[[1, 0, 2]] if match[1] == "dim" else -value[[1, 0]]
        for name, value in weights.items()
        if (match := _BOX_OUTPUTS.search(name))
    }
    return weights | changed, tuple(changed)


def read_checkpoint(path: Path, error: type[OfflineDistillError] = TeacherError) -> Checkpoint:
    """A checkpoint of mmengine or mmcv, or a plain state dict, read without running its pickle.

    Raises:
        error: the file is missing, is no checkpoint, or holds more than weights, numbers and text.
    """
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _SET_ASIDE]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as problem:
        raise error("the checkpoint cannot be read", where=path, got=problem.strerror) from problem
    except Exception as problem:  # torch.load meets arbitrary bytes with many kinds of error.
        raise error(
            "the file is no checkpoint that can be loaded safely",
            where=path,
            got=_reason(problem),
            expected="tensors, numbers and text",
            cure="If you trust its origin, keep its weights alone: load it once with "
            "torch.load(..., weights_only=False) and torch.save its 'state_dict'",
        ) from problem
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not (isinstance(weights, dict) and weights and all(isinstance(part, Tensor) for part in weights.values())):
        if isinstance(content, dict):
            require_own_kind(content, path, error)
        raise error(
            "the checkpoint holds no state dict",
            where=path,
            got=abridged(content) if isinstance(content, dict) else type(content).__name__,
            expected="'state_dict', or tensors by name",
        )
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    prefix = DATA_PARALLEL if all(name.startswith(DATA_PARALLEL) for name in weights) else ""
    return Checkpoint(
        weights={name.removeprefix(prefix): value for name, value in weights.items()},
        versions={
            name.removeprefix(prefix): dict(value)
            for name, value in getattr(weights, "_metadata", {}).items()
            if isinstance(value, dict)
        },
        mmdet3d_version=_mmdet3d_version(meta),
        config_text=next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None),
    )


DATA_PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put before the name of every tensor."""


def _mmdet3d_version(meta: dict) -> str | None:
    """Until 0.13 mmdet3d wrote its own version as `mmdet_version`; mmdet had reached 2.x by then."""
    versions = [version for key in ("mmdet3d_version", "mmdet_version") if isinstance(version := meta.get(key), str)]
    if "mmdet3d_version" in meta:
        return versions[0] if isinstance(meta["mmdet3d_version"], str) else None
    return next((version for version in versions if version.startswith("0.")), None)


def _reason(problem: Exception) -> str:
    """What torch.load says in one line: the global that it refused where it names one."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip()
    if refused := re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]*\w)", text):
        return f"a pickle that asks for {refused[1]}"
    return text.splitlines()[0] if text else type(problem).__name__


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, whatever the order of its entries."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
