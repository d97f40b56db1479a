"""Match a state dict with the tensors of a module: by name and by shape."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class StateDictMatch:
    """What of a state dict does not fit a module; false where everything does.

    missing: tensors of the module that the state dict lacks. BatchNorm's `num_batches_tracked` does not count: files
        from before 2018 have none, and a fixed momentum does not read it.
    unexpected: tensors of the state dict that the module lacks.
    mismatched: tensors of both, whose shapes differ: (the state dict's, the module's).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        reshaped = [f"{name} {theirs} for {ours}" for name, (theirs, ours) in self.mismatched.items()]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": reshaped}
        return "; ".join(f"{len(names)} {kind}: {abridged(names)}" for kind, names in kinds.items() if names)


def match_state_dict(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> StateDictMatch:
    """Compare names and shapes of a state dict with those of a module's own."""
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in own if name in weights}
    return StateDictMatch(
        missing=_counted(name for name in own if name not in weights),
        unexpected=tuple(name for name in weights if name not in own),
        mismatched={name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours},
    )


def load_state_dict(module: nn.Module, weights: Mapping[str, Tensor]) -> StateDictMatch:
    """Load a state dict as far as it fits; modules that convert older layouts themselves (spconv's) do so."""
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError:  # What is left to refuse when not strict: a tensor of another shape.
        return match_state_dict(weights, module.state_dict())
    return StateDictMatch(missing=_counted(missing), unexpected=tuple(unexpected))


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


def abridged(names: Iterable[object], most: int = 4, separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    texts = [str(name) for name in names]
    return separator.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _counted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))
