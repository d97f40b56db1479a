"""A checkpoint file -> a module's weights: all of them, finite, and without running what the file says."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import TeacherError

# What mmengine's checkpoints hold beside weights (the log's history, numbers of the data set). It is of no use here
# and is read into an inert stand-in, so that none of these names is ever called for an untrusted file.
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
    """Stands for an object of a pickle that is not wanted."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def load_weights(detector: nn.Module, path: Path) -> None:
    """Load a checkpoint of mmengine (or a plain state dict) into a detector, all of it, without running its pickle.

    Raises:
        TeacherError: the file is missing, is no checkpoint, holds more than weights, fits another detector, or holds
            a weight that is not finite.
    """
    weights = _read_weights(Path(path))
    try:
        missing, unexpected = detector.load_state_dict(weights, strict=False)
        reshaped: list[str] = []
    except RuntimeError:  # What is left to refuse when not strict: a tensor of another shape.
        own = detector.state_dict()
        missing, unexpected = [n for n in own if n not in weights], [n for n in weights if n not in own]
        reshaped = [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(kinds.values()):
        raise TeacherError(
            "the checkpoint belongs to another detector",
            where=path,
            got="; ".join(f"{len(names)} {kind}: {_abridged(names)}" for kind, names in kinds.items() if names),
            cure="Pair the checkpoint with the configuration that it was trained with",
        )
    spoilt = [name for name, tensor in detector.state_dict().items() if not torch.isfinite(tensor).all()]
    if spoilt:
        raise TeacherError("the checkpoint holds weights that are not finite", where=path, got=_abridged(spoilt))


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _SET_ASIDE]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TeacherError("the checkpoint cannot be read", where=path, got=error.strerror) from error
    except Exception as error:  # torch.load meets arbitrary bytes with many kinds of error.
        raise TeacherError(
            "the file is no checkpoint that can be loaded safely",
            where=path,
            got=str(error).strip().splitlines()[0] if str(error) else type(error).__name__,
            expected="tensors, numbers and text",
            cure="If you trust its origin, keep its weights alone: load it once with "
            "torch.load(..., weights_only=False) and torch.save its 'state_dict'",
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not (isinstance(weights, dict) and weights and all(isinstance(part, Tensor) for part in weights.values())):
        raise TeacherError(
            "the checkpoint holds no state dict",
            where=path,
            got=_abridged(content) if isinstance(content, dict) else type(content).__name__,
            expected="'state_dict', or tensors by name",
        )
    return weights


def _abridged(names: Iterable[str], most: int = 4) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, whatever the order of its entries."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
