"""The training: a Lightning module, its data, and what is left behind for the next command."""

import json
import logging
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cache.errors import ConfigError, DataError, NotCachedError
from cache.frames import Frames
from cache.loader import Loader
from cache.reader import TeacherCache
from cache.spec import CacheSpec
from student.checkpoint import CONFIG_KEY
from student.config import DetectorConfig, StudentConfig
from student.dataset import Batch, SeededSampler, StudentDataset, TeacherSource, collate
from student.detectors import build_detector
from student.distill.adapters import FeatureLayer
from student.distill.inherit import inherit_head
from student.distill.objective import DistillObjective

LAST = "last.ckpt"

# Lightning's own remarks (devices, tips, loggers) hide ours; its warnings stay.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of Lightning's own call of torch


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


class StudentModule(lightning.LightningModule):
    """A detector, and the distillation objective where there are teachers."""

    def __init__(self, config: StudentConfig, teachers: Sequence[CacheSpec] = ()) -> None:
        super().__init__()
        self.config = config
        # The detector is built first, so that it starts from the same weights with and without a teacher.
        self.detector = build_detector(config.detector)
        self.objective: DistillObjective | None = None
        if config.distill is not None:
            grid, tasks = config.detector.grid, config.detector.head.tasks
            self.objective = DistillObjective(config.distill, _layers(config.detector), grid, tasks, teachers)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.detector(batch)
        terms = self.detector.losses(output, batch)
        if self.objective is not None:
            weight = self.objective.detection_weight(self.current_epoch)
            terms = {name: weight * value for name, value in terms.items()}
            terms |= self.objective(
                output.features, output.heatmap, batch.teachers, batch.boxes, batch.labels, self.current_epoch
            )
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

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        training = self.config.training
        optimizer = torch.optim.AdamW(self.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        factor = partial(training.schedule_factor, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config.model_dump(mode="json")


def _layers(config: DetectorConfig) -> dict[str, FeatureLayer]:
    """What the objective may compare: the student's layers by the names of StudentOutput.features."""
    stages = {
        f"backbone{stage}": FeatureLayer(channels=channels, grid=config.grid.coarser(2 ** (stage + 1)))
        for stage, channels in enumerate(config.bev_channels)
    }
    return stages | {"head": FeatureLayer(channels=config.bev_neck_channels, grid=config.grid)}


def train_student(
    config: StudentConfig, root: Path, cache_paths: Sequence[Path], out: Path, resume: bool = False
) -> TrainingSummary:
    """Train a student; with `config.distill`, from the caches of one or several teachers.

    Leaves in `out`: checkpoints/last.ckpt, csv/metrics.csv, tensorboard/, summary.json.

    Raises:
        ConfigError: distillation without a cache, nothing to resume, or an `out` that holds another training.
        NotCachedError: a frame of the training split is not in a cache.
        DataError: the data set lacks something, or the loss became not finite.
    """
    checkpoint = _checkpoint_to_resume(out, resume)
    frames = Frames(root=root, version=config.data.version, splits=(config.data.train_split,), max_sweeps=0)
    sources = _open_sources(config, cache_paths, frames)
    lightning.seed_everything(config.training.seed, verbose=False)
    module = StudentModule(config, [source.cache.spec for source in sources])
    if config.distill is not None and config.distill.inherit_head:
        inherit_head(module.detector.head, sources[0].cache.head_weights())
    _keep_earlier_log(out / "csv" / "metrics.csv")
    cost = _Cost()
    training = config.training
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=training.epochs,
        precision=training.precision,
        gradient_clip_val=training.gradient_clip,
        logger=[CSVLogger(out, name="", version="csv"), TensorBoardLogger(out, name="", version="tensorboard")],
        callbacks=[ModelCheckpoint(out / "checkpoints", filename=Path(LAST).stem), _ProgressBar(), cost],
        use_distributed_sampler=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, _loader(frames, config, sources, module.detector.times), ckpt_path=checkpoint)
    summary = cost.summary(trainer, out / "checkpoints" / LAST)
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    return summary


class _ProgressBar(RichProgressBar):
    """Without the logger's version, which says nothing here."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class _Cost(Callback):
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


def _checkpoint_to_resume(out: Path, resume: bool) -> Path | None:
    checkpoint = out / "checkpoints" / LAST
    if resume and not checkpoint.exists():
        raise ConfigError("nothing to resume", where=checkpoint, cure="Leave --resume out, or name the run with --out")
    if checkpoint.exists() and not resume:
        raise ConfigError(
            "a training is there already", where=out, cure="Continue it with --resume, or give another --out"
        )
    return checkpoint if resume else None


def _keep_earlier_log(log: Path) -> None:
    """Lightning's CSV logger begins its file anew; what an earlier run logged is kept beside it."""
    if log.exists():
        log.rename(log.with_name(f"metrics-{len(list(log.parent.glob('metrics-*.csv')))}.csv"))


def _open_sources(config: StudentConfig, paths: Sequence[Path], frames: Frames) -> tuple[TeacherSource, ...]:
    if config.distill is None:
        return ()
    if not paths:
        raise ConfigError(
            "distillation needs a teacher's cache",
            where="distill",
            cure="Give --cache STORE, or switch distillation off with --set distill=null",
        )
    sources = []
    for index, path in enumerate(paths):
        layers = {pair.teacher for pair in config.distill.pairs if pair.cache == index}
        sources.append(TeacherSource(cache=TeacherCache(path), layers=tuple(sorted(layers))))
        _require_tokens(sources[-1].cache, path, frames)
    return tuple(sources)


def _require_tokens(cache: TeacherCache, path: Path, frames: Frames) -> None:
    missing = [token for token in frames.tokens if token not in cache]
    if missing:
        raise NotCachedError(
            "frames of the training split are not in the cache",
            where=path,
            got=f"{len(missing)} of {len(frames)} missing, the first is {missing[0]}",
            expected=f"all of {frames.version} {', '.join(frames.splits)}",
            cure="Dump the teacher on this split, or train on the one that was dumped",
        )


def _loader(frames: Frames, config: StudentConfig, sources: tuple[TeacherSource, ...], times: int) -> Loader:
    batch_size, workers = config.training.batch_size, config.data.workers
    if len(frames) < batch_size:
        raise ConfigError(
            "the batch is larger than the training split",
            where="training.batch_size",
            got=batch_size,
            expected=f"at most {len(frames)}",
            cure="Lower it",
        )
    return Loader(
        StudentDataset(frames, config, times),
        batch_size=batch_size,
        sampler=SeededSampler(len(frames), config.training.seed),
        collate_fn=partial(collate, sources=sources),
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
