"""Where each step's time goes: some steps of a real training, watched."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from cache.visualization.tables import Table
from student.config.student import StudentConfig
from student.data.dataset import Batch, LoadSeconds
from student.training.clock import PARTS, StepClock
from student.training.setup import prepare

STEPS = 20
WARM_UP = 3
"""Further steps that are not counted: workers start, memory is first asked for, convolutions are chosen."""
BOUND_BY_DATA = 0.1
"""A training that waits for its data for more than this share of its time would gain from workers."""


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """A part of a step: its median, and its share of all steps' time."""

    name: str
    median_s: float
    share: float


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """Where the time of a training's steps went.

    load: what loading took for each sample, in the process that did it; beside the step where there are workers.
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
        """Of some steps' parts, in seconds, and of what loading their batches took."""
        totals = [sum(step.values()) for step in steps]
        samples = len(steps) * config.training.batch_size
        load = sum(loads, LoadSeconds())
        return cls(
            steps=len(steps),
            batch_size=config.training.batch_size,
            workers=config.data.workers,
            step_s=statistics.median(totals),
            parts=tuple(_part(name, [step.get(name, 0.0) for step in steps], sum(totals)) for name in PARTS),
            load=LoadSeconds(
                images=load.images / samples, depth=load.depth / samples, features=load.features / samples
            ),
        )

    def table(self) -> Table:
        """For a person; what the loader did comes last, and is no part of the sum."""
        parts = [(_WHAT[part.name], f"{1e3 * part.median_s:.1f}", f"{part.share:.1%}") for part in self.parts]
        step = ("step", f"{1e3 * self.step_s:.1f}", f"{sum(part.share for part in self.parts):.1%}")
        load = [
            (f"loading, a sample: {name}", f"{1e3 * getattr(self.load, name):.1f}", "")
            for name in ("images", "depth", "features")
        ]
        return Table(
            title=f"{self.steps} steps of {self.batch_size} samples, {self.workers} loader workers",
            columns=("part", "median, ms", "share"),
            rows=(*parts, step, *load),
        )

    def advice(self) -> str:
        """What to do about it."""
        waiting = next(part.share for part in self.parts if part.name == "data")
        if waiting <= BOUND_BY_DATA:
            return "The loader keeps up."
        return f"{waiting:.0%} of the time is spent waiting for data: raise data.workers, if there are cores for them."


def _part(name: str, seconds: list[float], total_s: float) -> PartTime:
    return PartTime(name=name, median_s=statistics.median(seconds), share=sum(seconds) / total_s)


_WHAT = {
    "data": "data: waiting for the loader",
    "transfer": "transfer to the device",
    "forward": "forward, detection losses",
    "objective": "distillation objective",
    "backward": "backward",
    "optimiser": "clipping, optimiser, log",
}


class _Watch(Callback):
    """Presses the clock where the module cannot, and keeps what loading cost."""

    def __init__(self, clock: StepClock, tell: Callable[[int, int], None]) -> None:
        self.clock, self.tell = clock, tell
        self.loads: list[LoadSeconds] = []

    def on_after_backward(self, *_: Any) -> None:
        self.clock.end("backward")

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, _: int) -> None:
        self.clock.end("optimiser")
        self.clock.end_step()
        self.loads.append(batch.load_seconds)
        self.tell(len(self.loads), int(trainer.max_steps))


def profile_student(
    config: StudentConfig,
    root: Path,
    cache_paths: Sequence[Path],
    steps: int = STEPS,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> StepProfile:
    """Run some steps of a training, after a few that do not count; nothing is written.

    Raises:
        ConfigError, NotCachedError, DataError: see `student.training.trainer.train_student`.
    """
    prepared = prepare(config, root, cache_paths)
    prepared.module.clock = clock = StepClock()
    watch = _Watch(clock, progress)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=WARM_UP + steps,
        max_epochs=-1,
        precision=config.training.precision,
        gradient_clip_val=config.training.gradient_clip,
        logger=False,
        callbacks=[watch],
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(prepared.module, prepared.loader)
    return StepProfile.of(clock.steps[WARM_UP:], watch.loads[WARM_UP:], config)
