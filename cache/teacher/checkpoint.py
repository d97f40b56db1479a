"""Load checkpoints of mmengine, mmcv or plain PyTorch: all weights, finite, and without running the file's pickle."""

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import OfflineDistillError, OfflineDistillWarning, TeacherError
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
    """A checkpoint's weights by name, and the version of mmdet3d that wrote it if the file names one (until 1.0)."""

    weights: dict[str, Tensor]
    mmdet3d_version: str | None

    @property
    def old_boxes(self) -> bool:
        """Whether its boxes are those of mmdet3d < 1.0."""
        return self.mmdet3d_version is not None and self.mmdet3d_version.startswith("0.")


def load_weights(detector: nn.Module, path: Path) -> None:
    """Load a checkpoint of mmengine (or a plain state dict) into a detector, all of it, without running its pickle.

    Raises:
        TeacherError: the file is missing, is no checkpoint, holds more than weights, fits another detector, or holds
            a value that is not finite.
    """
    checkpoint = read_checkpoint(Path(path))
    weights = checkpoint.weights
    if checkpoint.old_boxes:
        weights, changed = to_current_boxes(weights)
        warnings.warn(
            f"{path} was trained with mmdet3d {checkpoint.mmdet3d_version}, whose boxes swap width and length and turn "
            f"yaw; the centre head's last convolutions were converted to mmdet3d 1.x ({len(changed)} tensors)",
            OfflineDistillWarning,
            stacklevel=2,
        )
    match = load_state_dict(detector, weights)
    if match:
        raise TeacherError(
            "the checkpoint belongs to another detector",
            where=path,
            got=match,
            cure="Pair the checkpoint with the configuration that it was trained with",
        )
    broken = not_finite(detector.state_dict())
    if broken:
        raise TeacherError("the checkpoint holds weights that are not finite", where=path, got=abridged(broken))


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
            got=str(problem).strip().splitlines()[0] if str(problem) else type(problem).__name__,
            expected="tensors, numbers and text",
            cure="If you trust its origin, keep its weights alone: load it once with "
            "torch.load(..., weights_only=False) and torch.save its 'state_dict'",
        ) from problem
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not (isinstance(weights, dict) and weights and all(isinstance(part, Tensor) for part in weights.values())):
        raise error(
            "the checkpoint holds no state dict",
            where=path,
            got=abridged(content) if isinstance(content, dict) else type(content).__name__,
            expected="'state_dict', or tensors by name",
        )
    meta = content.get("meta")
    version = meta.get("mmdet3d_version") if isinstance(meta, dict) else None
    return Checkpoint(weights=weights, mmdet3d_version=version if isinstance(version, str) else None)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, whatever the order of its entries."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
