"""TrainingConfig: optimisation, devices and checkpoints of a training."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cache.config import Strict
from cache.errors import ConfigError


class EmaConfig(Strict):
    """A moving average of the weights: average <- decay * average + (1 - decay) * weights, after every step."""

    decay: float = Field(0.999, gt=0, lt=1)


class TrainingConfig(Strict):
    """Optimisation of a student. A step is one of the optimiser: `samples_per_step` samples."""

    epochs: int = Field(24, ge=1, le=10**6)
    devices: int | Literal["auto"] = Field(1, union_mode="left_to_right")
    """Processes on each node, each with its own GPU, or all on the CPU where there is none; "auto": every GPU."""
    nodes: int = Field(1, ge=1, le=2**16)
    """Machines. torchrun or SLURM starts the processes of more than one."""
    batch_size: int = Field(8, ge=1, le=2**16)
    """Samples of one device that go through the detector together."""
    accumulate: int = Field(1, ge=1, le=2**16)
    """Batches whose gradients are added up for one step."""
    class_balanced: bool = False
    """Sample frames so that every class occurs equally often (CBGS, Zhu et al. 2019)."""
    shuffle: Literal["samples", "shards"] = "samples"
    """Order of an epoch: all samples among each other; or those of a window of the store's shards, then of the next, so
    that of a store at a URL each shard is fetched once an epoch."""
    shuffle_window: int = Field(8, ge=1, le=2**20)
    """Shards whose samples are shuffled among each other."""
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    gradient_clip: float = Field(5.0, gt=0)
    """Largest norm of a step's gradient."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate after the warm-up: constant, falling to 0 along half a cosine, or falling at milestones."""
    milestones: tuple[int, ...] = ()
    """Numbers of epochs after which schedule "step" multiplies the learning rate by gamma."""
    gamma: float = Field(0.1, gt=0, lt=1)
    warmup_steps: int = Field(0, ge=0, le=10**9)
    """Steps of linear growth of the learning rate."""
    init_from: Path | None = None
    """A checkpoint of `import-checkpoint` or `train-student` with the detector's initial weights."""
    ema: EmaConfig | None = None
    """Average of the weights, for evaluation and for other trainings to start from; null: the trained weights."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    """Keep the weights of convolutions, and with them the maps, with channels as the fastest dimension."""
    sync_batchnorm: bool = False
    """BatchNorm over the samples of all devices instead of each device's own; GPUs only."""
    activation_checkpointing: bool = False
    """Compute the residual blocks of image backbone and BEV encoder again when their gradients are due: less memory."""
    compile: bool = False
    """Compile the detector with torch.compile; needs a C++ compiler."""
    validate_every: int = Field(0, ge=0)
    """Epochs between runs of the official metrics on data.val_split; 0: never."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints within an epoch, beside the one at its end."""
    log_gradients_every: int = Field(0, ge=0)
    """Steps between comparisons of the teacher's terms' gradient with the detection losses'; 0: never."""
    seed: int = Field(0, ge=0, lt=2**32)

    @property
    def ranks(self) -> int:
        """Processes of all nodes; `devices` must be a number."""
        return int(self.devices) * self.nodes

    @property
    def samples_per_step(self) -> int:
        """Samples of all ranks' batches together in a step of the optimiser."""
        return self.batch_size * self.accumulate * self.ranks

    def schedule_factor(self, step: int, steps_per_epoch: int) -> float:
        """Factor of the learning rate at a step, 0 .. 1."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        match self.schedule:
            case "constant":
                return 1.0
            case "step":
                return self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
            case "cosine":
                total_steps = self.epochs * steps_per_epoch
                progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
                return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    @model_validator(mode="after")
    def _some_device(self) -> "TrainingConfig":
        if self.devices != "auto" and self.devices < 1:
            raise ConfigError(
                "a training needs a device",
                where="training.devices",
                got=self.devices,
                expected='1 or more, or "auto"',
                cure="Change it",
            )
        return self

    @model_validator(mode="after")
    def _milestones_belong_to_the_step_schedule(self) -> "TrainingConfig":
        if (self.schedule == "step") != bool(self.milestones) or any(epoch < 1 for epoch in self.milestones):
            raise ConfigError(
                "schedule and milestones do not fit each other",
                where="training.milestones",
                got=f"{list(self.milestones)} with schedule {self.schedule}",
                expected='epochs, 1 or more, for schedule "step", and none for the others',
                cure="Change one of them",
            )
        return self

    @model_validator(mode="after")
    def _compiled_or_recomputed(self) -> "TrainingConfig":
        if self.compile and self.activation_checkpointing:
            raise ConfigError(
                "torch.compile cannot follow blocks that are computed again",
                where="training.compile",
                got="true, with activation_checkpointing",
                expected="one of the two",
                cure="Set training.activation_checkpointing or training.compile to false",
            )
        return self
