"""Checkpoints of a training, and its stop by a signal."""

import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from cache.errors import StoppedError, StoreError
from cache.store.atomic import remove_partial, write_durably
from cache.terminal.errors import Terminated
from student.models.checkpoint import CONFIG_KEY, checkpoint_bytes

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


LEAST_GRACE_S = 20.0
"""Time that a step has to end after a signal, or twice the longest step's where that is more."""


def remove_partial_checkpoints(out: Path) -> None:
    """Remove what saves left that were killed: each is as large as a checkpoint."""
    for key in (LAST, BEST):
        remove_partial(out / key)


class LastCheckpoint(Checkpoint):
    """Save the last checkpoint, and stop the training there after SIGTERM or SIGINT.

    Saved at the end of every epoch, before its validation, after every `every_steps` steps, and after a signal, which
    lets the current step end. A second SIGINT breaks it off, and so does a step that does not end, such as one that
    waits for data.
    """

    def __init__(self, path: Path, every_steps: int | None, accumulate: int) -> None:
        self.path, self.every_steps, self.accumulate = path, every_steps, accumulate
        self.signal: signal.Signals | None = None
        self.stopping = False
        self.validation_is_due = False
        self.saving = False
        self.moved, self.longest_s = time.monotonic(), 0.0
        self.timer: threading.Timer | None = None
        self.overdue = False

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Replace Lightning's own handler, which communicates with other ranks wherever it interrupts the training."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.moved = time.monotonic()
        # Not at the end of the batch before: its losses are logged after that.
        self._stop_if_signalled(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.longest_s, self.moved = max(self.longest_s, now - self.moved), now
        if (batch_idx + 1) % self.accumulate:
            return
        self.stopping = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        if self.stopping or (self.every_steps and trainer.global_step % self.every_steps == 0):
            self._save(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.validation_is_due = True
        self._save(trainer)
        self.validation_is_due = False
        self._stop_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.moved = time.monotonic()
        self.stopping |= trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        self._stop_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer)
        self._stop_if_signalled(trainer)

    def on_exception(self, *_: Any) -> None:
        self._stop_watching()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._stop_watching()

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning resumes a validation only once its first batch has begun.
        if self.validation_is_due:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"], progress["current"] = begun, dict(begun)

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Count an epoch's batches as this run does: it may accumulate more or fewer of them for a step."""
        accumulated = checkpoint[CONFIG_KEY]["training"]["accumulate"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # Saved in the hooks of a step's last batch, which does not count as completed there.
            more = self.accumulate - accumulated
            counts |= {name: count + more * math.ceil(count / accumulated) for name, count in counts.items()}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.overdue:
            raise StoppedError(
                f"the training was stopped within a step that did not end in {self._grace_s:.0f} s",
                where=self.path,
                got=None if self.path.exists() else "no checkpoint yet",
                cure="Go on with --resume" if self.path.exists() else "Start it again",
            ) from (KeyboardInterrupt() if self.signal == signal.SIGINT else Terminated())
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt
        if self.signal is None:
            self._watch()
        self.signal = signal.Signals(number)

    @property
    def _grace_s(self) -> float:
        return max(LEAST_GRACE_S, 2 * self.longest_s)

    def _watch(self) -> None:
        """Signal the main thread again where its step does not end."""
        self.timer = threading.Timer(self._grace_s, self._break_off)
        self.timer.daemon = True
        self.timer.start()

    def _break_off(self) -> None:
        if self.saving or time.monotonic() - self.moved < self._grace_s:
            self._watch()
            return
        self.overdue = True
        main = threading.main_thread().ident
        assert main is not None and self.signal is not None
        signal.pthread_kill(main, self.signal)

    def _stop_watching(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _save(self, trainer: lightning.Trainer) -> None:
        self.saving = True
        trainer.save_checkpoint(self.path)
        self.saving, self.moved = False, time.monotonic()

    def _stop_if_signalled(self, trainer: lightning.Trainer) -> None:
        if not self.stopping:
            return
        self._stop_watching()
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
