"""What a training step takes of memory, counted in a step that is really run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from student.data.dataset import Batch
from student.training.live_bytes import LiveBytes
from student.training.module import StudentModule


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of the tensors of one step.

    batch: images, geometry and the teachers' samples, still encoded.
    activations: what the forward pass leaves for the backward pass.
    passes: the most that both passes take at once: activations, gradients and what lives for a moment.
    """

    batch: int
    activations: int
    passes: int


def measure_step(module: StudentModule, batch: Batch) -> StepMemory:
    """Run the forward and the backward pass of a batch, on the module's device and in its training's precision."""
    half = module.config.training.precision != "32-true"
    batch = batch.to(module.device)
    module.train().zero_grad(set_to_none=True)
    with LiveBytes() as live:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=half):
            loss = torch.stack(list(module.loss_terms(batch).values())).sum()
        activations = live.now
        loss.backward()
    module.zero_grad(set_to_none=True)
    return StepMemory(batch=bytes_of(tensors_of(batch)), activations=activations, passes=live.peak)


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
