"""The run of a training: data, module, callbacks, and what is left behind for the next command."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cache.errors import ConfigError, NotCachedError
from cache.frames import Frames
from cache.loader import Loader
from cache.reader import TeacherCache
from student.callbacks import Cost, Progress, TrainingSummary
from student.checkpoint import start_from
from student.config import StudentConfig
from student.dataset import StudentDataset, TeacherSource, collate
from student.detectors import BevDetector
from student.distill.inherit import inherit_head
from student.early_checks import require_fitting, require_sound, warn_of_rehearsal
from student.module import StudentModule
from student.sampling import SeededSampler

LAST = "last.ckpt"

# Lightning's own remarks (devices, tips, loggers) hide ours; its warnings stay.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # of Lightning's own call of torch


def train_student(
    config: StudentConfig,
    root: Path,
    cache_paths: Sequence[Path],
    out: Path,
    resume: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> TrainingSummary:
    """Train a student; with `config.distill`, from the caches of one or several teachers.

    Leaves in `out`: checkpoints/last.ckpt, csv/metrics.csv, tensorboard/, summary.json.
    After each step `progress` is called with (done, total) steps and a remark.

    Raises:
        ConfigError: distillation without a cache, nothing to resume, an `out` that holds another training, splits that
            share frames, or a checkpoint to start from of another detector.
        MismatchError: a cache is of another version of the data set, or its head is not one to be inherited.
        NotCachedError: a frame of the training split is not in a cache.
        DataError: the data set lacks something, or the loss became not finite.
    """
    require_sound(config)
    checkpoint = _checkpoint_to_resume(out, resume)
    frames = Frames(root=root, version=config.data.version, splits=(config.data.train_split,), max_sweeps=0)
    sources = _open_sources(config, cache_paths, frames)
    lightning.seed_everything(config.training.seed, verbose=False)
    module = StudentModule(config, [source.cache.spec for source in sources])
    if config.training.init_from is not None and checkpoint is None:
        start_from(module.detector, config.training.init_from)
    if config.distill is not None and config.distill.inherit_head:
        inherit_head(module.detector.head, sources[0].cache.head_weights())
    _keep_earlier_log(out / "csv" / "metrics.csv")
    cost = Cost()
    training = config.training
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=training.epochs,
        precision=training.precision,
        gradient_clip_val=training.gradient_clip,
        logger=[CSVLogger(out, name="", version="csv"), TensorBoardLogger(out, name="", version="tensorboard")],
        callbacks=[ModelCheckpoint(out / "checkpoints", filename=Path(LAST).stem), Progress(progress), cost],
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    for source, path in zip(sources, cache_paths, strict=False):
        warn_of_rehearsal(source.cache.spec, path)
    trainer.fit(module, _loader(frames, config, sources, module.detector), ckpt_path=checkpoint)
    summary = cost.summary(trainer, out / "checkpoints" / LAST)
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    return summary


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
        cache = TeacherCache(path)
        require_fitting(cache.spec, path, config, inherits=config.distill.inherit_head and index == 0)
        _require_tokens(cache, path, frames)
        sources.append(TeacherSource(cache=cache, layers=tuple(sorted(layers))))
    if config.bev_augment.replay:
        _require_drawn_views(sources[0].cache)
    return tuple(sources)


def _require_drawn_views(cache: TeacherCache) -> None:
    if cache.spec.drawn is None:
        raise NotCachedError(
            "the store holds no drawn views to replay",
            where=cache.path,
            got=f"the views {', '.join(cache.spec.views)}",
            cure="Dump the teacher with views.drawn, or set bev_augment.replay to false",
        )


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


def _loader(frames: Frames, config: StudentConfig, sources: tuple[TeacherSource, ...], detector: BevDetector) -> Loader:
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
        StudentDataset(
            frames,
            config,
            detector.times,
            with_depth=detector.supervise_depth,
            replayed=sources[0].cache if config.bev_augment.replay else None,
            depth_cache=next((source.cache for source in sources if source.cache.spec.depth is not None), None),
        ),
        batch_size=batch_size,
        sampler=SeededSampler(len(frames), config.training.seed),
        collate_fn=partial(collate, sources=sources),
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
