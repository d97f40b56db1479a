"""Callbacks for a training's progress, pace and memory, and the summary of a run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from student.training.memory import peak_bytes


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """Cost and result of a training, written to summary.json.

    peak_memory_mb: of the training process: CUDA memory where a GPU trained, resident memory otherwise.
    seconds_per_step: median over the steps after the first two, data loading included; None where there are none.
    final_loss: None where a resumed training had no step left.
    frames: trained on; frames_left_out: by data.exclude and data.skip_missing.
    best_nds: of best_checkpoint, over the whole run; None where no validation has run.
    """

    steps: int
    seconds_per_step: float | None
    peak_memory_mb: float
    final_loss: float | None
    checkpoint: str
    best_nds: float | None
    best_checkpoint: str | None
    frames: int = 0
    frames_left_out: int = 0

    def __str__(self) -> str:
        pace = "" if self.seconds_per_step is None else f"{self.seconds_per_step:.2f} s a step, "
        loss = "" if self.final_loss is None else f", final loss {self.final_loss:.2f}"
        cost = f"{self.steps} steps, {pace}peak memory {self.peak_memory_mb:.0f} MB{loss}"
        best = "" if self.best_nds is None else f"\nbest: {self.best_checkpoint}, NDS {self.best_nds:.4f}"
        if self.frames_left_out:
            cost += f"\n{self.frames_left_out} frames of {self.frames + self.frames_left_out} left out"
        return f"{cost}\ncheckpoint: {self.checkpoint}{best}"


class Progress(Callback):
    """Call `report` with (done, total) steps and a remark."""

    def __init__(self, report: Callable[[int, int, str], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if "loss" in trainer.callback_metrics:
            self._report(trainer, f"loss {float(trainer.callback_metrics['loss']):.2f}")

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._report(trainer, "validation")

    def _report(self, trainer: lightning.Trainer, remark: str) -> None:
        if trainer.is_global_zero:
            total = int(trainer.estimated_stepping_batches)
            self.report(trainer.global_step, total, f"epoch {trainer.current_epoch + 1}, {remark}")


class Cost(Callback):
    """Record seconds a step and peak memory."""

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.accumulate == 0:
            self.ends.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float | None:
        """The median over the steps after the first two; None where there are none."""
        steps = [after - before for before, after in zip(self.ends[1:], self.ends[2:], strict=False)]
        return statistics.median(steps) if steps else None

    def summary(self, trainer: lightning.Trainer, last: Path, best: ModelCheckpoint) -> TrainingSummary:
        """The summary of a training that has ended."""
        return TrainingSummary(
            steps=trainer.global_step,
            seconds_per_step=self.seconds_per_step,
            peak_memory_mb=peak_bytes("cuda" if torch.cuda.is_available() else "cpu") / 2**20,
            final_loss=float(trainer.callback_metrics["loss"]) if "loss" in trainer.callback_metrics else None,
            checkpoint=str(last),
            best_nds=None if best.best_model_score is None else float(best.best_model_score),
            best_checkpoint=best.best_model_path or None,
        )
