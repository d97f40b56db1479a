"""Train a student: setup, callbacks, Lightning's trainer, and the files of a run."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed import DistError
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cache.errors import OfflineDistillError
from cache.nuscenes.loader import loader_errors
from student.config.student import StudentConfig
from student.distill.terms.base import PairTerm
from student.training.callbacks import Cost, Progress, TrainingSummary
from student.training.checkpointing import BEST, LAST, DurableCheckpoints, LastCheckpoint
from student.training.preflight import warn_of_random_weights
from student.training.setup import TrainingSetup, make_trainer, set_up_training
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
    cache_paths: Sequence[str | Path],
    out: Path,
    resume: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> TrainingSummary | None:
    """Train a student; with `config.distill`, from the caches of one or several teachers.

    Leaves in `out`: checkpoints/ (last.ckpt, best.ckpt), csv/metrics.csv, tensorboard/, validation/, summary.json.
    After each step `progress` is called with (done, total) steps and a remark.

    Returns:
        None in the other ranks than the first.

    Raises:
        ConfigError, MismatchError, NotCachedError: found before the first step, see `student.training.preflight`.
        DataError: the data set lacks something, or the loss is not finite.
        StoppedError: SIGTERM or SIGINT ended the training at a checkpoint.
    """
    setup = set_up_training(config, root, cache_paths, out, resume)
    best, cost = _best_checkpoint(out / BEST), Cost(setup.config.training.accumulate)
    trainer = _trainer(setup.config, out, [Progress(progress), cost, *_saving(setup, out), best])
    if trainer.is_global_zero:
        _keep_earlier_log(out / "csv" / "metrics.csv")
        for source in setup.dataset.sources:
            warn_of_random_weights(source.cache.spec, source.cache.path)
    with _peer_errors(), loader_errors(), _worker_shutdown(trainer):
        trainer.fit(
            setup.module,
            setup.loader(trainer.global_rank),
            setup.validation_loader(trainer.global_rank),
            ckpt_path=out / LAST if resume else None,
            weights_only=True,
        )
    if not trainer.is_global_zero:
        return None
    summary = replace(
        cost.summary(trainer, out / LAST, best), frames=len(setup.dataset), frames_left_out=setup.left_out
    )
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    return summary


@contextmanager
def _peer_errors() -> Iterator[None]:
    """Name the error of a device whose peer has ended; the peer reports its own error itself."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error):
            raise OfflineDistillError(
                "the process of another device or node has ended", cure="See its own message; go on with --resume"
            ) from error
        raise


@contextmanager
def _worker_shutdown(trainer: lightning.Trainer) -> Iterator[None]:
    """Shut the loader's workers down even where Lightning's own clean-up fails.

    A logger may fail again after a failed training, as on a full disk. Workers ignore SIGTERM, so join would hang.
    """
    try:
        yield
    finally:
        trainer.fit_loop.teardown()


def _saving(setup: TrainingSetup, out: Path) -> Iterator[Callback]:
    """The callbacks that keep checkpoints and averages, and validate."""
    training = setup.config.training
    yield LastCheckpoint(out / LAST, training.checkpoint_every_steps, training.accumulate)
    if training.ema is not None:
        yield WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(training.ema.decay))
    if setup.val_frames is not None:
        yield OfficialMetrics(setup.val_frames, out / "validation")


def _trainer(config: StudentConfig, out: Path, callbacks: list[Callback]) -> lightning.Trainer:
    training = config.training
    several = training.ranks != 1
    return make_trainer(
        training,
        devices=training.devices,
        num_nodes=training.nodes,
        strategy=DDPStrategy(find_unused_parameters=_has_silent_parameters(config)) if several else "auto",
        sync_batchnorm=training.sync_batchnorm,
        max_epochs=training.epochs,
        accumulate_grad_batches=training.accumulate,
        check_val_every_n_epoch=max(1, training.validate_every),
        num_sanity_val_steps=0,
        logger=[CSVLogger(out, name="", version="csv"), TensorBoardLogger(out, name="", version="tensorboard")],
        plugins=[DurableCheckpoints()],
        callbacks=callbacks,
        log_every_n_steps=1,
    )


def _best_checkpoint(path: Path) -> ModelCheckpoint:
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
    used = {pair for term in distill.terms if isinstance(term, PairTerm) for pair in distill.pairs_of(term)}
    return bool(distill.multi_scale_epoch or distill.two_stage_epoch or set(distill.pairs) - used)


def _keep_earlier_log(log: Path) -> None:
    """Lightning's CSV logger begins its file anew; what an earlier run logged is kept beside it."""
    if log.exists():
        log.rename(log.with_name(f"metrics-{len(list(log.parent.glob('metrics-*.csv')))}.csv"))
