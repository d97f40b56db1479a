"""Load a state dict into a module: match names and shapes, convert sparse kernels, verify every value."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cache.teacher.sparse import converted, possible_layouts, sparse_convolutions, sparse_kernels


@dataclass(frozen=True, kw_only=True)
class StateDictMatch:
    """What of a state dict does not fit a module; false where everything does.

    missing: tensors of the module that the state dict lacks. BatchNorm's `num_batches_tracked` does not count: files
        from before 2018 have none, and a fixed momentum does not read it.
    unexpected: tensors of the state dict that the module lacks.
    mismatched: tensors of both, whose shapes differ: (the state dict's, the module's).
    undecided: sparse kernels whose shapes fit the layouts of spconv 1 and of spconv 2, in a file that names neither.
    unequal: tensors of the module that do not hold the state dict's values after loading.
    refusal: what torch said when it refused a state dict whose names and shapes fit.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()
    refusal: str = ""

    def __bool__(self) -> bool:
        return any((self.missing, self.unexpected, self.mismatched, self.undecided, self.unequal, self.refusal))

    def __str__(self) -> str:
        reshaped = [f"{name} {theirs} for {ours}" for name, (theirs, ours) in self.mismatched.items()]
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": reshaped,
            "sparse kernels in the layout of spconv 1 or of spconv 2": self.undecided,
            "with other values after loading": self.unequal,
            "refused": (self.refusal,) if self.refusal else (),
        }
        return "; ".join(f"{len(names)} {kind}: {abridged(names)}" for kind, names in kinds.items() if names)


def match_state_dict(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> StateDictMatch:
    """Compare names and shapes of a state dict with those of a module's own."""
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in own if name in weights}
    return StateDictMatch(
        missing=_counted(name for name in own if name not in weights),
        unexpected=tuple(name for name in weights if name not in own),
        mismatched={name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours},
    )


def load_state_dict(
    module: nn.Module, weights: Mapping[str, Tensor], versions: Mapping[str, dict[str, Any]] | None = None
) -> StateDictMatch:
    """Load a state dict as far as it fits, and verify that the module then holds its values.

    Sparse kernels are converted between the layouts of spconv 1 and 2, which shapes tell; `versions`, the `_metadata`
    of a state dict that torch has written, decides where shapes do not. Modules that rename older tensors do so.
    """
    versions = dict(versions or {})
    sparse = sparse_convolutions(module)
    layouts = possible_layouts(module, weights) if sparse else set()
    kernels = [name for name in sparse_kernels(module) if name in weights]
    if len(layouts) == 2 and kernels:
        named = {versions.get(name, {}).get("version") for name in sparse} if versions else set()
        if not named:
            return StateDictMatch(undecided=tuple(kernels))
        layouts = {"spconv2"} if named == {2} else {"spconv1"}
    own = module.state_dict()
    state = OrderedDict(converted(module, weights, layouts.pop()) if layouts else weights)
    # mmdet3d's own loading permutes kernels unless the version of their module is 2.
    state._metadata = versions | {name: {"version": 2} for name in sparse}  # type: ignore[attr-defined]
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # What is left to refuse when not strict: a tensor of another shape.
        return match_state_dict(state, own) or StateDictMatch(refusal=str(error).strip())
    return StateDictMatch(
        missing=_counted(missing), unexpected=tuple(unexpected), unequal=_unequal(module, state, missing)
    )


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


def abridged(names: Iterable[object], most: int = 4, separator: str = ", ") -> str:
    """The first few names, and how many more there are."""
    texts = [str(name) for name in names]
    return separator.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _unequal(module: nn.Module, state: Mapping[str, Tensor], missing: Iterable[str]) -> tuple[str, ...]:
    """The module's tensors that do not hold the file's; a renamed one equals one of the file's without a namesake."""
    own = module.state_dict()
    renamed = [value for name, value in state.items() if name not in own]
    loaded = _counted(name for name in own if name not in set(missing))
    return tuple(
        name
        for name in loaded
        if not any(_same(own[name], value) for value in ([state[name]] if name in state else renamed))
    )


def _same(own: Tensor, value: Tensor) -> bool:
    """Equal after the conversion to the module's type, NaN included."""
    value = value.to(own.device, own.dtype).reshape(own.shape) if value.numel() == own.numel() else value
    return own.shape == value.shape and torch.allclose(own, value, rtol=0, atol=0, equal_nan=True)


def _counted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))
