"""Validation with the official nuScenes metrics while a training runs."""

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch.distributed
from pytorch_lightning.callbacks import Callback

from cache.errors import OfflineDistillError, OfflineDistillWarning
from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import Metrics, evaluate
from student.models.decoding import Detections


class OfficialMetrics(Callback):
    """Log val/mAP and val/NDS of a split; the devkit's files go to a folder for each epoch.

    Args:
        frames: of the split.
        out: where those folders go.
    """

    def __init__(self, frames: Frames, out: Path) -> None:
        self.frames, self.out = frames, out
        self.found: dict[str, Detections] = {}

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.found |= outputs

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        parts = self._parts(trainer.world_size)
        self.found = {}
        outcome = self._evaluate(parts, trainer.current_epoch) if trainer.is_global_zero else None
        # The other devices wait for the first one's outcome, which may be an error.
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, OfflineDistillError):
            raise outcome
        assert outcome is not None
        if trainer.is_global_zero:
            for remark in outcome.remarks:
                warnings.warn(f"validation: {remark}", OfflineDistillWarning, stacklevel=2)
        module.log_dict({"val/mAP": outcome.mean_ap, "val/NDS": outcome.nds}, prog_bar=True, sync_dist=True)

    def _parts(self, ranks: int) -> list[dict[str, Detections]]:
        """The detections of each device."""
        if ranks == 1:
            return [self.found]
        parts: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(parts, self.found)
        return parts

    def _evaluate(self, parts: list[dict[str, Detections]], epoch: int) -> Metrics | OfflineDistillError:
        # Devices repeat samples where these do not divide evenly; a token counts once.
        found = {token: detections for part in parts for token, detections in part.items()}
        try:
            return evaluate(found.items(), self.frames, self.out / f"epoch{epoch + 1:03d}")
        except OfflineDistillError as error:
            return error
