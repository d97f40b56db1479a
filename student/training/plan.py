"""What a training will take, measured on one frame and two, before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.store.shard_reader import ShardReader
from cache.visualization.facts import stored_bytes
from cache.visualization.tables import Table
from student.config.student import StudentConfig
from student.data.dataset import TeacherSource, collate
from student.training.memory import bytes_of, measure_step
from student.training.preflight import ADAM_MOMENTS, checkpoint_bytes
from student.training.setup import Preparation, prepare

GB = 1e9
GPUS_GB = (8, 12, 24, 80)
CONTEXT_GB = 1.0
"""What a GPU's driver and libraries take before a tensor is there."""
HEADROOM = 0.1
"""Share of a GPU's memory that is left to convolutions' workspaces and to the allocator's gaps."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training's tensors: what does not depend on the batch, and what every sample adds.

    weights: parameters and buffers. optimiser: AdamW's two moments. fixed: gradients, weights in another precision, and
        their average.
    """

    weights: int
    optimiser: int
    fixed: int
    each_sample: int

    def peak(self, batch_size: int) -> int:
        """Of a step of so many samples, once the optimiser has its moments."""
        return self.weights + self.optimiser + self.fixed + batch_size * self.each_sample

    def largest_batch(self, gpu_gb: float) -> int:
        """How many samples fit on a GPU, with room for what is not counted; 0 where not one does."""
        room = GB * (gpu_gb * (1 - HEADROOM) - CONTEXT_GB) - self.peak(0)
        return max(0, int(room // self.each_sample))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training's cost; memory is an estimate for the GPU, counted on the machine that planned.

    epoch_bytes: what is read of the caches in each epoch.
    """

    parameters: int
    batch_size: int
    precision: str
    memory: TrainingMemory
    steps: int
    epochs: int
    checkpoint_bytes: int
    epoch_bytes: float

    def table(self) -> Table:
        """The plan for a person."""
        memory = self.memory
        rows = (
            ("parameters", f"{self.parameters:,}"),
            ("steps", f"{self.steps:,} in {self.epochs} epochs of {self.steps // self.epochs:,}"),
            ("read of the caches", f"{self.epoch_bytes / GB:,.2f} GB an epoch"),
            ("a checkpoint", f"{self.checkpoint_bytes / GB:,.2f} GB"),
            ("weights", f"{memory.weights / GB:,.2f} GB"),
            ("optimiser's state", f"{memory.optimiser / GB:,.2f} GB"),
            ("other fixed parts", f"{memory.fixed / GB:,.2f} GB"),
            ("activations, each sample", f"{memory.each_sample / GB:,.2f} GB"),
            (f"peak with {self.batch_size} samples", f"{memory.peak(self.batch_size) / GB:,.2f} GB"),
        )
        return Table(title=f"{self.precision}, estimates of a device's memory", rows=rows)

    def gpu_table(self) -> Table:
        """The largest batch on GPUs of several sizes."""
        rows = tuple((f"{size} GB", str(self.memory.largest_batch(size) or "none")) for size in GPUS_GB)
        return Table(title="", columns=("GPU", "largest training.batch_size"), rows=rows)


def plan_training(config: StudentConfig, root: Path, cache_paths: Sequence[Path]) -> TrainingPlan:
    """Run a forward and a backward pass of one sample and of two, and count.

    Raises:
        ConfigError, NotCachedError, DataError: see `student.training.trainer.train_student`.
    """
    training = config.training.model_copy(update={"compile": False})  # A compiled pass would not be counted.
    prepared = prepare(config.model_copy(update={"training": training}), root, cache_paths)
    memory = measure_memory(prepared)
    batches = len(prepared.loader)
    return TrainingPlan(
        parameters=sum(parameter.numel() for parameter in prepared.module.parameters()),
        batch_size=training.batch_size,
        precision=training.precision,
        memory=memory,
        steps=training.epochs * (batches // training.accumulate),
        epochs=training.epochs,
        checkpoint_bytes=checkpoint_bytes(prepared.module, average=training.ema is not None),
        epoch_bytes=batches * training.batch_size * sum(map(bytes_per_sample, prepared.sources)),
    )


def measure_memory(prepared: Preparation) -> TrainingMemory:
    """Of a training that was prepared, from a batch of one frame and from one of two."""
    module = prepared.module.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = [prepared.dataset[index % len(prepared.dataset)] for index in range(2)]
    one, two = (measure_step(module, collate(samples[:count], prepared.sources)) for count in (1, 2))
    each_sample = two.batch + two.passes - one.batch - one.passes
    weights = bytes_of([*module.parameters(), *module.buffers()])
    return TrainingMemory(
        weights=weights,
        optimiser=ADAM_MOMENTS * bytes_of(parameter for parameter in module.parameters() if parameter.requires_grad),
        fixed=one.batch + one.passes - each_sample + (weights if module.config.training.ema else 0),
        each_sample=each_sample,
    )


def bytes_per_sample(source: TeacherSource) -> float:
    """What a training reads of a cache for each sample: one view of its layers, heatmap and canvas mask."""
    cache = source.cache
    stored = stored_bytes(cache.attributes, ShardReader(cache.path, cache.attributes), cache.committed_shards())
    names = {"heatmap", "canvas_mask"} | {f"features/{layer}" for layer in source.layers}
    return sum(size for name, size in stored.items() if name.removesuffix("_scale") in names) / len(cache.spec.views)
