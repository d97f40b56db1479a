"""What watches a training: its progress on the terminal, its pace and memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What a training cost; written to summary.json.

    peak_memory_mb: of the training process: CUDA memory where a GPU trained, resident memory otherwise.
    seconds_per_step: median over the steps after the first two, data loading included; None where there are none.
    """

    steps: int
    seconds_per_step: float | None
    peak_memory_mb: float
    final_loss: float
    checkpoint: str

    def __str__(self) -> str:
        pace = "" if self.seconds_per_step is None else f"{self.seconds_per_step:.2f} s a step, "
        cost = f"{self.steps} steps, {pace}peak memory {self.peak_memory_mb:.0f} MB, final loss {self.final_loss:.2f}"
        return f"{cost}\ncheckpoint: {self.checkpoint}"


class Progress(Callback):
    """Tells whoever started the training how far it is."""

    def __init__(self, tell: Callable[[int, int, str], None]) -> None:
        self.tell = tell

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            remark = f"epoch {trainer.current_epoch + 1}, loss {float(trainer.callback_metrics['loss']):.2f}"
            self.tell(trainer.global_step, int(trainer.estimated_stepping_batches), remark)


class Cost(Callback):
    """Seconds a step and peak memory."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def summary(self, trainer: lightning.Trainer, checkpoint: Path) -> TrainingSummary:
        steps = [after - before for before, after in zip(self.ends[1:], self.ends[2:], strict=False)]
        return TrainingSummary(
            steps=trainer.global_step,
            seconds_per_step=statistics.median(steps) if steps else None,
            peak_memory_mb=_peak_memory_mb(),
            final_loss=float(trainer.callback_metrics["loss"]),
            checkpoint=str(checkpoint),
        )


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
