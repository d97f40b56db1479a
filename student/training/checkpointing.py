"""Checkpoints of a training, and its stop by a signal."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from cache.errors import StoppedError, StoreError
from cache.store.atomic import remove_partial, write_durably
from cache.terminal.errors import Terminated
from student.models.checkpoint import checkpoint_bytes

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
"""Checkpoints in a run's folder."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DurableCheckpoints(TorchCheckpointIO):
    """Atomic checkpoints with a digest: after a crash, a kill or a full disk the file is the earlier or the new one.

    Lightning writes to the system's temporary folder first; where that is another file system, its move is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path, content = Path(path), checkpoint_bytes(checkpoint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
        except OSError as error:
            raise StoreError(
                "the checkpoint cannot be written",
                where=path,
                got=error.strerror,
                cure="Free some space and go on from the last one with --resume",
            ) from error


def remove_partial_checkpoints(out: Path) -> None:
    """Remove what saves left that were killed: each is as large as a checkpoint."""
    for key in (LAST, BEST):
        remove_partial(out / key)


class LastCheckpoint(Checkpoint):
    """Save the last checkpoint, and stop the training there after SIGTERM or SIGINT.

    Saved at the end of every epoch, before its validation, after every `every_steps` steps, and after a signal, which
    lets the current step end; a second SIGINT breaks it off.
    """

    def __init__(self, path: Path, every_steps: int | None, accumulate: int) -> None:
        self.path, self.every_steps, self.accumulate = path, every_steps, accumulate
        self.signal: signal.Signals | None = None
        self.stopping = False
        self.validation_is_due = False

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Replace Lightning's own handler, which communicates with other ranks wherever it interrupts the training."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        # Not at the end of the batch before: its losses are logged after that.
        self._stop_if_signalled(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.accumulate:
            return
        self.stopping = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        if self.stopping or (self.every_steps and trainer.global_step % self.every_steps == 0):
            trainer.save_checkpoint(self.path)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.validation_is_due = True
        trainer.save_checkpoint(self.path)
        self.validation_is_due = False
        self._stop_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.stopping |= trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)
        self._stop_if_signalled(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning resumes a validation only once its first batch has begun.
        if self.validation_is_due:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"], progress["current"] = begun, dict(begun)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def _stop_if_signalled(self, trainer: lightning.Trainer) -> None:
        if not self.stopping:
            return
        if not trainer.is_global_zero:
            raise SystemExit(0)  # The first process reports for all.
        raise StoppedError(
            "the training was stopped",
            where=f"after step {trainer.global_step}, checkpoint {self.path}",
            cure="Go on with --resume",
        ) from (KeyboardInterrupt() if self.signal == signal.SIGINT else Terminated())


def ignore_stop_signals(worker: int) -> None:
    """Make a loader's worker ignore signals to the process group: the training handles them and needs its batches."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
