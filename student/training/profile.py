"""Profile of a training's steps: the time of each part."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler

from student.config.student import StudentConfig
from student.data.batch import Batch, LoadSeconds
from student.training.launcher import require_agreement
from student.training.setup import make_trainer, set_up_training

PARTS = ("data", "transfer", "forward", "objective", "backward", "optimiser")
STEPS = 20
WARM_UP = 3
"""Further steps that are not counted: workers start, memory is first allocated, convolutions are chosen."""

_ENDS = {
    "train_dataloader_next": "data",
    "batch_to_device": "transfer",
    "training_step": "forward",
    "objective": "objective",
    "backward": "backward",
}
"""Parts of a step by the last word of the Lightning action with which they end."""


class StepProfiler(Profiler):
    """Seconds of each part of every step, from the actions that Lightning profiles.

    Lightning's own profilers leave out the time between actions and count nested ones twice. Here a part gets all the
    time since the part before it ended, so that the parts add up to the step. On a GPU every end waits for the device:
    otherwise its work would count to whichever part waits for it first.

    steps: seconds by part, of each step that has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self._step: defaultdict[str, float] = defaultdict(float)
        self._ended = time.perf_counter()

    def start(self, action_name: str) -> None:
        if action_name == "objective":  # It interrupts the training step.
            self._end("forward")

    def stop(self, action_name: str) -> None:
        part = _ENDS.get(action_name.rpartition(".")[2])
        if part is not None:
            self._end(part)

    def end_step(self) -> None:
        """End a step with its last part, the optimiser."""
        self._end("optimiser")
        self.steps.append(dict(self._step))
        self._step.clear()

    def _end(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._step[part] += now - self._ended
        self._ended = now


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """A part of a step: its median, and its share of all steps' time."""

    name: str
    median_s: float
    share: float


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """The time of a training's steps, by part.

    load: loading time of a sample, in the process that loads; beside the step where there are workers.
    """

    steps: int
    batch_size: int
    workers: int
    step_s: float
    parts: tuple[PartTime, ...]
    load: LoadSeconds

    @classmethod
    def of(
        cls, steps: Sequence[dict[str, float]], loads: Sequence[LoadSeconds], config: StudentConfig
    ) -> "StepProfile":
        """The profile of some steps: seconds by part, and the loading time of their batches."""
        totals = [sum(step.values()) for step in steps]
        seconds = {name: [step.get(name, 0.0) for step in steps] for name in PARTS}
        samples = len(steps) * config.training.batch_size
        load = sum(loads, LoadSeconds())
        return cls(
            steps=len(steps),
            batch_size=config.training.batch_size,
            workers=config.data.workers,
            step_s=statistics.median(totals),
            parts=tuple(
                PartTime(name=name, median_s=statistics.median(each), share=sum(each) / sum(totals))
                for name, each in seconds.items()
            ),
            load=LoadSeconds(
                images=load.images / samples, depth=load.depth / samples, features=load.features / samples
            ),
        )


class _StepEnds(Callback):
    """End the profiler's steps, and record what loading them took."""

    def __init__(self, profiler: StepProfiler, progress: Callable[[int, int], None]) -> None:
        self.profiler, self.progress = profiler, progress
        self.loads: list[LoadSeconds] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, _: int) -> None:
        self.profiler.end_step()
        self.loads.append(batch.load_seconds)
        self.progress(len(self.loads), int(trainer.max_steps))


def profile_student(
    config: StudentConfig,
    root: Path,
    cache_paths: Sequence[str | Path],
    steps: int = STEPS,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> StepProfile:
    """Run some steps of a training, after a few that do not count; nothing is written.

    Raises:
        ConfigError, MismatchError, NotCachedError, DataError: see `student.training.trainer.train_student`.
    """
    require_agreement(devices=1)
    setup, profiler = set_up_training(config, root, cache_paths), StepProfiler()
    ends = _StepEnds(profiler, progress)
    if setup.module.objective is not None:
        setup.module.objective.register_forward_pre_hook(lambda *_: profiler.start("objective"))
        setup.module.objective.register_forward_hook(lambda *_: profiler.stop("objective"))
    trainer = make_trainer(
        config.training,
        devices=1,
        max_steps=WARM_UP + steps,
        max_epochs=-1,
        profiler=profiler,
        logger=False,
        callbacks=[ends],
        enable_checkpointing=False,
    )
    trainer.fit(setup.module, setup.loader())
    return StepProfile.of(profiler.steps[WARM_UP:], ends.loads[WARM_UP:], config)
