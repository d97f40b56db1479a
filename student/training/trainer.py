"""The run of a training: data, module, callbacks, and what is left behind for the next command."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed import DistError
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cache.errors import ConfigError, OfflineDistillError
from cache.nuscenes.frames import Frames
from student.config.student import StudentConfig
from student.distill.term_configs import FeatureTerm
from student.models.checkpoint import step_to_resume
from student.training.callbacks import Cost, Progress, TrainingSummary
from student.training.checkpointing import BEST, LAST, DurableCheckpoints, LastCheckpoint
from student.training.early_checks import require_sound, warn_of_rehearsal
from student.training.loaders import open_sources, training_loader, training_sampler, validation_loader
from student.training.preflight import require_room, resolve_devices, validation_frames
from student.training.setup import first_module
from student.training.validation import OfficialMetrics

# Lightning's own remarks (devices, tips, loggers) hide ours; its warnings stay, but for those that are not true here.
for chatty in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
for untrue in (
    "LeafSpec",  # of Lightning's own call of torch
    "your dataloader is not resumable",  # the sampler is
    "Checkpoint directory .* exists and is not empty",  # when it resumes
    "Experiment logs directory .* exists and is not empty",  # what was there is kept by another name
    "You defined a `validation_step` but have no `val_dataloader`",  # validation is optional
):
    warnings.filterwarnings("ignore", message=f".*{untrue}.*")


def train_student(
    config: StudentConfig,
    root: Path,
    cache_paths: Sequence[Path],
    out: Path,
    resume: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> TrainingSummary | None:
    """Train a student; with `config.distill`, from the caches of one or several teachers.

    Leaves in `out`: checkpoints/ (last.ckpt, best.ckpt), csv/metrics.csv, tensorboard/, validation/, summary.json.
    After each step `progress` is called with (done, total) steps and a remark.

    Returns:
        None in the processes that a training on several devices has beside the first.

    Raises:
        ConfigError: what cannot work, found before the first step (see `student.training.early_checks` and
            `student.training.preflight`); nothing to resume, or an `out` that holds another training.
        MismatchError: a cache is of another version of the data set, or its head is not one to be inherited.
        NotCachedError: a frame of the training split is not in a cache.
        DataError: the data set lacks something, or the loss became not finite.
        StoppedError: SIGTERM or SIGINT ended the training at a checkpoint.
    """
    require_sound(config)
    config = resolve_devices(config)
    training, last, best = config.training, out / "checkpoints" / LAST, out / "checkpoints" / BEST
    step = _step_to_begin_with(last, config, resume)
    frames = Frames(root=root, version=config.data.version, splits=(config.data.train_split,), max_sweeps=0)
    val_frames = validation_frames(config, frames)
    sources = open_sources(config, cache_paths, frames)
    module = first_module(config, sources, resumed=resume)
    require_room(out, module, [last, best] if val_frames else [last], average=training.ema is not None)
    keep_best, cost = _keep_best(best), Cost(training.accumulate)
    keep_last = LastCheckpoint(last, training.checkpoint_every_steps, training.accumulate)
    watchers = [Progress(progress), cost, keep_last, keep_best]
    if training.ema is not None:
        watchers.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(training.ema.decay)))
    if val_frames is not None:
        watchers.append(OfficialMetrics(val_frames, out / "validation"))
    trainer = _trainer(config, out, watchers)
    if trainer.is_global_zero:
        _keep_earlier_log(out / "csv" / "metrics.csv")
        for source, path in zip(sources, cache_paths, strict=False):
            warn_of_rehearsal(source.cache.spec, path)
    ranks = {"rank": trainer.global_rank, "ranks": trainer.world_size}
    sampler = training_sampler(frames, config, **ranks)
    sampler.go_to(step)
    with _peers_named(), _workers_ended(trainer):
        trainer.fit(
            module,
            training_loader(frames, config, sources, module.detector, sampler),
            None if val_frames is None else validation_loader(val_frames, config, module.detector.times, **ranks),
            ckpt_path=last if resume else None,
            weights_only=True,
        )
    return _leave_summary(cost.summary(trainer, last, keep_best), out) if trainer.is_global_zero else None


@contextmanager
def _peers_named() -> Iterator[None]:
    """What a device says when another one's process has ended, in our words; that one has told why itself."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise OfflineDistillError(
                "the process of another device has ended", cure="See its own message; go on with --resume"
            ) from error
        raise


@contextmanager
def _workers_ended(trainer: lightning.Trainer) -> Iterator[None]:
    """Also where Lightning leaves them: where a logger fails once more at the end of a training that has failed, as on
    a full disk. Python would wait for ever for workers that are deaf to SIGTERM."""
    try:
        yield
    finally:
        trainer.fit_loop.teardown()


def _leave_summary(summary: TrainingSummary, out: Path) -> TrainingSummary:
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    return summary


def _trainer(config: StudentConfig, out: Path, watchers: list[Callback]) -> lightning.Trainer:
    training = config.training
    several = training.devices != 1
    return lightning.Trainer(
        accelerator="auto",
        devices=training.devices,
        strategy=DDPStrategy(find_unused_parameters=_has_silent_parameters(config)) if several else "auto",
        sync_batchnorm=training.sync_batchnorm,
        max_epochs=training.epochs,
        accumulate_grad_batches=training.accumulate,
        precision=training.precision,
        gradient_clip_val=training.gradient_clip,
        check_val_every_n_epoch=max(1, training.validate_every),
        num_sanity_val_steps=0,
        logger=[CSVLogger(out, name="", version="csv"), TensorBoardLogger(out, name="", version="tensorboard")],
        plugins=[DurableCheckpoints()],
        callbacks=watchers,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )


def _keep_best(path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        path.parent,
        filename=path.stem,
        monitor="val/NDS",
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def _has_silent_parameters(config: StudentConfig) -> bool:
    """Whether some parameters get no gradient at some epoch, which DDP must then look for in every step."""
    distill = config.distill
    if distill is None:
        return False
    used = {pair for term in distill.terms if isinstance(term, FeatureTerm) for pair in distill.pairs_of(term)}
    return bool(distill.multi_scale_epoch or distill.two_stage_epoch or set(distill.pairs) - used)


def _step_to_begin_with(checkpoint: Path, config: StudentConfig, resume: bool) -> int:
    if resume and not checkpoint.exists():
        raise ConfigError("nothing to resume", where=checkpoint, cure="Leave --resume out, or name the run with --out")
    if checkpoint.exists() and not resume:
        raise ConfigError(
            "a training is there already",
            where=checkpoint.parent.parent,
            cure="Continue it with --resume, or give another --out",
        )
    return step_to_resume(checkpoint, config) if resume else 0


def _keep_earlier_log(log: Path) -> None:
    """Lightning's CSV logger begins its file anew; what an earlier run logged is kept beside it."""
    if log.exists():
        log.rename(log.with_name(f"metrics-{len(list(log.parent.glob('metrics-*.csv')))}.csv"))
