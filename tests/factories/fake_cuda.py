"""A GPU that is not there: tensors on `cuda` without values, and the places where Python would wait for the device."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent.parent
OURS = tuple(f"{ROOT / package}/" for package in ("cache", "student"))
CUDA = torch.device("cuda", 0)

INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
WITH_VALUES = ("_linalg_check_errors", "_local_scalar_dense", "bincount", "equal", "nonzero", "masked_select")
"""Operations whose answer, or its shape, depends on values."""


class Waits(TorchDispatchMode):
    """Count the waits for the device by (place in our code, operation), and go on as if each had been answered.

    A wait is what `torch.cuda.set_sync_debug_mode` reports on a GPU: a number or a shape that depends on a tensor's
    values, and a copy between the CPU and the device that is not asked to be asynchronous.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        target = kwargs.get("device")
        if "cuda" not in devices | {torch.device(target or "cpu").type}:
            with unset_fake_temporarily():  # The CPU is there.
                return func(*args, **kwargs)
        if _waits(name, devices, args, kwargs):
            self.found[_place(), name] += 1
            return ANSWERS.get(name, _run)(func, *args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    """Within it, tensors on `cuda` have a shape and no values; those on the CPU are real."""
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


@contextmanager
def bfloat16() -> Iterator[None]:
    """`torch.autocast("cuda", torch.bfloat16)`, which is refused where there is no GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def on_cuda(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the device, as `.to("cuda")` leaves it."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(parameter.detach().to(CUDA)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(CUDA))
    return module


def _waits(name: str, devices: set[str], args: Any, kwargs: Any) -> bool:
    if name in ("_to_copy", "copy_"):
        target = {torch.device(kwargs["device"]).type} if kwargs.get("device") else set()
        asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
        return len(devices | target) == 2 and not asynchronous
    if name in INDEXING:
        return any(not index.is_cuda or index.dtype == torch.bool for index in args[1] if index is not None)
    return name in WITH_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def _run(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _copy(func: Callable[..., Any], tensor: Tensor, **kwargs: Any) -> Tensor:
    """To the CPU: zeros, for they can be looked at."""
    copy = func(tensor, **kwargs)
    if copy.is_cuda:
        return copy
    with unset_fake_temporarily():
        return torch.zeros(copy.shape, dtype=copy.dtype)


def _index(func: Callable[..., Any], tensor: Tensor, indices: Any, *rest: Any, **kwargs: Any) -> Any:
    """With masks as if every element were True."""
    plain: list[Any] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            plain += [torch.zeros(index.numel(), dtype=torch.long, device=index.device)] * index.dim()
        else:
            plain.append(index)
    return func(tensor, plain, *rest, **kwargs)


ANSWERS: dict[str, Callable[..., Any]] = {
    "_to_copy": _copy,
    "_local_scalar_dense": lambda _, tensor: True if tensor.dtype == torch.bool else 1,
    "bincount": lambda _, tensor, weights=None, minlength=0: tensor.new_empty(minlength),
    "nonzero": lambda _, tensor: tensor.new_empty(tensor.numel(), tensor.dim(), dtype=torch.long),
    "repeat_interleave": lambda func, repeats, **_: func(repeats, output_size=repeats.numel()),
    **dict.fromkeys(INDEXING, _index),
}


def _place() -> str:
    """The innermost function of ours that is running, as module.function."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            module = Path(name).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            # Comprehensions are frames of their own up to Python 3.11.
            return f"{module}.{frame.f_code.co_qualname.split('.<')[0]}"
        frame = frame.f_back
    return "outside"
