"""The Lightning module: a detector, the objective, and the optimiser."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as lightning
import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cache.errors import DataError
from cache.spec import CacheSpec
from student.checkpoint import CONFIG_KEY
from student.clock import StepClock
from student.config import DetectorConfig, StudentConfig
from student.dataset import Batch
from student.detectors import build_detector
from student.distill.adapters import FeatureLayer
from student.distill.objective import DistillObjective
from student.distill.warp import to_teacher


class StudentModule(lightning.LightningModule):
    """A detector, and the distillation objective where there are teachers.

    clock: where it is there, it is told of the end of each part of a step.
    """

    clock: StepClock | None = None

    def __init__(self, config: StudentConfig, teachers: Sequence[CacheSpec] = ()) -> None:
        super().__init__()
        self.config, self.teachers = config, tuple(teachers)
        # The detector is built first, so that it starts from the same weights with and without a teacher.
        self.detector = build_detector(config.detector)
        self.objective: DistillObjective | None = None
        if config.distill is not None:
            grid, tasks = config.detector.grid, config.detector.head.tasks
            self.objective = DistillObjective(config.distill, _layers(config.detector), grid, tasks, teachers)

    def loss_terms(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms whose sum is minimised."""
        to_teachers = self._to_teachers(batch)
        output = self.detector(batch)
        terms = self.detector.losses(output, batch)
        self._end("forward")
        if self.objective is None:
            return terms
        weight = self.objective.detection_weight(self.current_epoch)
        terms = {name: weight * value for name, value in terms.items()} | self.objective(
            output.features,
            output.heatmap,
            batch.teachers,
            batch.boxes,
            batch.labels,
            self.current_epoch,
            to_teachers,
        )
        self._end("objective")
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.loss_terms(batch)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise DataError(
                "the loss is not finite",
                where=f"step {self.global_step}, tokens {', '.join(batch.tokens)}",
                got=", ".join(f"{name} {value.item():.3g}" for name, value in terms.items()),
                cure="Lower training.learning_rate or training.gradient_clip, or look at these frames",
            )
        self.log("loss", total, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"loss/{name}": value for name, value in terms.items()}, batch_size=len(batch))
        return total

    def _to_teachers(self, batch: Batch) -> list[Float[Tensor, "B 4 4"] | None]:
        """Made before the forward pass, so that no work of the device's is waited for; on the CPU."""
        grid = self.config.detector.grid
        return [
            to_teacher(grid, spec.heatmap_grid, maps.view_matrix, batch.bev_matrix, batch.lidar_to_ego)
            for spec, maps in zip(self.teachers, batch.teachers, strict=True)
        ]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        training = self.config.training
        optimizer = torch.optim.AdamW(self.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        factor = partial(training.schedule_factor, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        self._end("data")
        moved = batch.to(device, non_blocking=True)
        self._end("transfer")
        return moved

    def _end(self, part: str) -> None:
        if self.clock is not None:
            self.clock.end(part)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config.model_dump(mode="json")


def _layers(config: DetectorConfig) -> dict[str, FeatureLayer]:
    """What the objective may compare: the student's layers by the names of StudentOutput.features."""
    stages = {
        f"backbone{stage}": FeatureLayer(channels=channels, grid=config.grid.coarser(2 ** (stage + 1)))
        for stage, channels in enumerate(config.bev_channels)
    }
    return stages | {"head": FeatureLayer(channels=config.bev_neck_channels, grid=config.grid)}
