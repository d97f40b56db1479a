"""Plan of a training: memory, steps and bytes to read, measured on one frame and on two before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.store.layout import batch_arrays, head_map_array
from student.config.student import StudentConfig
from student.data.teacher_source import TeacherSource
from student.training.memory import ADAM_MOMENTS, bytes_of, checkpoint_bytes, step_bytes
from student.training.setup import TrainingSetup, set_up_training

GB = 1e9
GPUS_GB = (8, 12, 24, 80)
CONTEXT_GB = 1.0
"""Memory of a GPU's driver and libraries before the first tensor."""
HEADROOM = 0.1
"""Share of a GPU's memory left to convolutions' workspaces and to the allocator's gaps."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training's tensors, by sample and independent of the batch.

    weights: parameters and buffers. optimiser: AdamW's two moments. fixed: gradients, weights in another precision, and
        their average.
    """

    weights: int
    optimiser: int
    fixed: int
    each_sample: int

    def peak(self, batch_size: int) -> int:
        """Bytes of a step of that many samples, with the optimiser's moments."""
        return self.weights + self.optimiser + self.fixed + batch_size * self.each_sample

    def largest_batch(self, gpu_gb: float) -> int:
        """Samples that fit on a GPU, after deducting what is not counted; 0 where not one does."""
        available = GB * (gpu_gb * (1 - HEADROOM) - CONTEXT_GB) - self.peak(0)
        return max(0, int(available // self.each_sample))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training's cost; memory is an estimate for the GPU, counted on the machine that planned.

    epoch_bytes: bytes read of the caches in each epoch.
    """

    parameters: int
    batch_size: int
    precision: str
    memory: TrainingMemory
    steps: int
    epochs: int
    checkpoint_bytes: int
    epoch_bytes: float


def plan_training(config: StudentConfig, root: Path, cache_paths: Sequence[str | Path]) -> TrainingPlan:
    """Run a forward and a backward pass of one sample and of two, and count.

    Raises:
        ConfigError, NotCachedError, DataError: see `student.training.setup.set_up_training`.
    """
    training = config.training.model_copy(update={"compile": False})  # A compiled pass would not be counted.
    setup = set_up_training(config.model_copy(update={"training": training}), root, cache_paths)
    memory, module = measure_memory(setup), setup.module
    batches = len(setup.loader())
    return TrainingPlan(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        batch_size=training.batch_size,
        precision=training.precision,
        memory=memory,
        steps=training.epochs * (batches // training.accumulate),
        epochs=training.epochs,
        checkpoint_bytes=checkpoint_bytes(module, average=training.ema is not None),
        epoch_bytes=batches * training.batch_size * sum(map(bytes_per_sample, setup.dataset.sources)),
    )


def measure_memory(setup: TrainingSetup) -> TrainingMemory:
    """The memory of a training, from a batch of one frame and one of two."""
    module, dataset = setup.module.to("cuda" if torch.cuda.is_available() else "cpu"), setup.dataset
    samples = [dataset[index % len(dataset)] for index in range(2)]
    one, two = (step_bytes(module, dataset.collate(samples[:count])) for count in (1, 2))
    each_sample = two - one
    weights = bytes_of([*module.parameters(), *module.buffers()])
    return TrainingMemory(
        weights=weights,
        optimiser=ADAM_MOMENTS * bytes_of(parameter for parameter in module.parameters() if parameter.requires_grad),
        fixed=one - each_sample + (weights if module.config.training.ema else 0),
        each_sample=each_sample,
    )


def bytes_per_sample(source: TeacherSource) -> float:
    """Bytes that a training reads of a cache for each sample: one view of its layers, heatmap and canvas mask.

    With the head's other maps where the objective compares boxes.
    """
    cache = source.cache
    names, shards = batch_arrays(source.layers), [0] if cache.url else None  # a request for each shard's record
    if source.head_maps:
        names |= {head_map_array(name) for name in cache.spec.head_maps}
    return sum(size for name, size in cache.bytes_per_sample(shards).items() if name in names) / len(cache.spec.views)
