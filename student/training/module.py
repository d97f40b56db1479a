"""StudentModule: detector, distillation objective and optimiser as a Lightning module."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
import torch.distributed
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cache.errors import DataError
from cache.spec import CacheSpec
from student.config.student import DetectorConfig, StudentConfig
from student.data.batch import Batch
from student.distill.adapters import FeatureLayer
from student.distill.objective import DistillObjective
from student.distill.predictions import StudentDepth
from student.models.checkpoint import checkpoint_metadata
from student.models.decoding import Detections
from student.models.detectors import StudentOutput, build_detector
from student.training.activation_checkpoint import recompute_blocks
from student.training.gradients import compare_gradients

Losses = dict[str, Float[Tensor, ""]]


class StudentModule(lightning.LightningModule):
    """A detector and, with `config.distill`, the objective that compares it with its teachers."""

    def __init__(
        self,
        config: StudentConfig,
        teachers: Sequence[CacheSpec] = (),
        teacher_heads: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        # The detector is built first, so that it starts from the same weights with and without a teacher.
        self.detector = build_detector(config.detector)
        self.objective: DistillObjective | None = None
        if config.distill is not None:
            grid, tasks = config.detector.grid, config.detector.head.tasks
            layers = _layers(config.detector)
            self.objective = DistillObjective(config.distill, layers, grid, tasks, teachers, teacher_heads)
        if config.training.activation_checkpointing:
            recompute_blocks(self)
        if config.training.channels_last:
            self.to(memory_format=torch.channels_last)
        if config.training.compile:
            self.detector.compile()
        self._step_losses: list[Losses] = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout with the batch's place among those of all devices, so that a resumed training draws alike."""
        place = batch_idx * self.trainer.world_size + self.global_rank
        sequence = np.random.SeedSequence((self.config.training.seed, self.current_epoch, place))
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.loss_terms(batch)
        total = torch.stack(list(terms.values())).sum()
        losses = {"loss": total} | {f"loss/{name}": value for name, value in terms.items()}
        # The one time that a step waits for its device; the log then finds its numbers on the CPU.
        values = dict(zip(losses, torch.stack(list(losses.values())).detach().cpu(), strict=True))
        self._require_finite(values, total.device, batch)
        self._log_gradients(terms, batch_idx)
        self._log_losses(losses if torch.distributed.is_initialized() else values, batch_idx)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Detections]:
        """The detections of each token; `student.training.validation` gathers them."""
        return dict(zip(batch.tokens, self.detector.detect(self.detector(batch)), strict=True))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        training = self.config.training
        # Not fused: on CPUs that step is silently wrong where a gradient and its weight differ in memory format.
        optimizer = torch.optim.AdamW(self.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // training.epochs
        factor = partial(training.schedule_factor, steps_per_epoch=steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= checkpoint_metadata(self.config)

    def loss_terms(self, batch: Batch) -> Losses:
        """The weighted terms whose sum is minimised."""
        output = self.detector(batch)
        terms = self.detector.losses(output, batch)
        if self.objective is None:
            return terms
        epoch = self.current_epoch
        weight = self.objective.detection_weight(epoch)
        return {name: weight * value for name, value in terms.items()} | self.objective(
            output.features,
            output.heatmap,
            batch.teachers,
            batch.boxes,
            batch.labels,
            epoch,
            batch.to_teachers,
            student_maps=output.head_maps,
            depth=self._depth(output, batch),
            labelled=batch.labelled,
        )

    def _depth(self, output: StudentOutput, batch: Batch) -> StudentDepth | None:
        if output.depth is None or batch.points_m is None:
            return None
        bins_m = self.config.detector.depth_m
        return StudentDepth(
            logits=output.depth, depth_m=batch.require_depth_m(), points_m=batch.points_m, bins_m=bins_m
        )

    def _require_finite(self, losses: Losses, device: torch.device, batch: Batch) -> None:
        """Stop all devices together; the one whose loss it is names the tokens.

        Args:
            losses: on the CPU; the total is "loss".
        """
        finite = bool(torch.isfinite(losses["loss"]))
        if _all_agree(finite, device):
            return
        if finite:
            raise DataError("the loss is not finite on another device", cure="Look at that device's message")
        terms = {name.removeprefix("loss/"): value for name, value in losses.items() if name != "loss"}
        raise DataError(
            "the loss is not finite",
            where=f"step {self.global_step}, tokens {', '.join(batch.tokens)}",
            got=", ".join(f"{name} {value.item():.3g}" for name, value in terms.items()),
            cure="Lower training.learning_rate or training.gradient_clip, or look at these frames",
        )

    def _log_gradients(self, terms: Losses, batch_idx: int) -> None:
        """Of the step's first batch, on the first device; Lightning's own log would repeat it until the next one."""
        every, accumulate = self.config.training.log_gradients_every, self.config.training.accumulate
        if self.objective is None or not every or self.global_step % every or batch_idx % accumulate:
            return
        found = {name: value.item() for name, value in compare_gradients(terms, self.detector.parameters()).items()}
        for logger in self.loggers:
            logger.log_metrics(found, step=self.global_step)

    def _log_losses(self, losses: Losses, batch_idx: int) -> None:
        """One entry for each step of the optimiser: the mean over its batches and over the devices."""
        self._step_losses.append({name: value.detach() for name, value in losses.items()})
        if (batch_idx + 1) % self.config.training.accumulate == 0:
            means = {name: torch.stack([batch[name] for batch in self._step_losses]).mean() for name in losses}
            self._step_losses.clear()
            self.log("loss", means.pop("loss"), prog_bar=True, sync_dist=True, batch_size=1)
            self.log_dict(means, sync_dist=True, batch_size=1)


def _all_agree(here: bool, device: torch.device) -> bool:
    """Whether `here` is true on every device."""
    if not torch.distributed.is_initialized():
        return here
    least = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return bool(least)


def _layers(config: DetectorConfig) -> dict[str, FeatureLayer]:
    """The student's layers, by the names of StudentOutput.features."""
    stages = {
        f"backbone{stage}": FeatureLayer(channels=channels, grid=config.grid.coarser(2 ** (stage + 1)))
        for stage, channels in enumerate(config.bev_channels)
    }
    return stages | {"head": FeatureLayer(channels=config.bev_neck_channels, grid=config.grid)}
