"""Memory of a training: tensors counted in a step that really runs, checkpoints, and this process."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student.data.batch import Batch
from student.training.module import StudentModule

ADAM_MOMENTS = 2
"""Tensors that the optimiser keeps for each parameter."""


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made within this context, forward and backward, and that are still alive.

    A tensor's memory counts once, whatever views there are of it. An operation's own workspace (a convolution's), and
    what an allocator rounds up, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, Tensor):
                self._count(part)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted:
            return
        self._counted.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._counted.remove(key)
        self.now -= size


def step_bytes(module: StudentModule, batch: Batch) -> int:
    """Peak bytes of one step's tensors: the batch, still encoded, activations, gradients and temporary tensors.

    Runs the forward and the backward pass, on the module's device and in its training's precision.
    """
    half = module.config.training.precision != "32-true"
    batch = batch.to(module.device)
    module.train().zero_grad(set_to_none=True)
    with LiveBytes() as live:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=half):
            loss = torch.stack(list(module.loss_terms(batch).values())).sum()
        loss.backward()
    module.zero_grad(set_to_none=True)
    return bytes_of(tensors_of(batch)) + live.peak


def checkpoint_bytes(module: nn.Module, average: bool) -> int:
    """Bytes of a checkpoint's tensors: weights, their average if there is one, and the optimiser's moments."""
    trained = bytes_of(parameter for parameter in module.parameters() if parameter.requires_grad)
    return (1 + average) * bytes_of(module.state_dict().values()) + ADAM_MOMENTS * trained


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors within dataclasses, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


def peak_bytes(device: str) -> int:
    """The peak memory of this process: CUDA memory allocated, or on a CPU resident memory.

    Linux's VmHWM, since getrusage's figure would start with the peak of the process that started this one.
    """
    return torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A size in /proc/self/status, such as VmRSS, the resident memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
