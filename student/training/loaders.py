"""The data of a training: its caches, and the loaders of its two splits."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch.utils.data import Sampler

from cache.errors import ConfigError, NotCachedError
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.store.reader import TeacherCache
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset, TeacherSource, collate
from student.data.samplers import ClassBalanced, RankShare, SeededSampler, Shuffled
from student.models.detectors import BevDetector
from student.training.checkpointing import ignore_stop_signals
from student.training.early_checks import require_fitting


def open_sources(config: StudentConfig, paths: Sequence[Path], frames: Frames) -> tuple[TeacherSource, ...]:
    """The caches that a training distils from, none where it does not.

    Raises:
        ConfigError: distillation without a cache.
        StoreError: a store cannot be opened, does not fit (MismatchError), or lacks a frame or drawn views to replay
            (NotCachedError).
    """
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
        cache = TeacherCache(path)
        require_fitting(cache.spec, path, config, inherits=config.distill.inherit_head and index == 0)
        _require_tokens(cache, path, frames)
        sources.append(TeacherSource(cache=cache, layers=config.teacher_layers(index)))
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


def training_sampler(frames: Frames, config: StudentConfig, rank: int = 0, ranks: int = 1) -> SeededSampler:
    """The sequence of a training's samples, as this rank sees it.

    Raises:
        ConfigError: the split does not fill one step.
    """
    training = config.training
    order = (
        ClassBalanced.of(frames.label_counts(), [name for task in config.detector.head.tasks for name in task])
        if training.class_balanced
        else Shuffled(frames=len(frames))
    )
    samples_per_step = training.batch_size * training.accumulate * ranks
    if len(order) < samples_per_step:
        raise ConfigError(
            "one step needs more samples than an epoch has",
            where="training.batch_size",
            got=f"{training.batch_size} x {training.accumulate} batches x {ranks} devices",
            expected=f"at most {len(order)} samples",
            cure="Lower batch_size, accumulate or devices",
        )
    return SeededSampler(order, training.seed, samples_per_step, rank, ranks)


def training_loader(
    frames: Frames,
    config: StudentConfig,
    sources: tuple[TeacherSource, ...],
    detector: BevDetector,
    sampler: SeededSampler,
) -> Loader:
    """Batches for a detector, with the teachers' samples."""
    return _loader(training_dataset(frames, config, sources, detector), config, sampler, sources)


def training_dataset(
    frames: Frames, config: StudentConfig, sources: tuple[TeacherSource, ...], detector: BevDetector
) -> StudentDataset:
    """The samples of a training, as its detector wants them."""
    return StudentDataset(
        frames,
        config,
        detector.times,
        with_depth=detector.supervise_depth,
        replayed=sources[0].cache if config.bev_augment.replay else None,
        depth_cache=next((source.cache for source in sources if source.cache.spec.depth is not None), None),
    )


def validation_loader(frames: Frames, config: StudentConfig, times: int, rank: int, ranks: int) -> Loader:
    """Batches of this rank's share of a split, without draws."""
    return _loader(StudentDataset(frames, config, times), config, RankShare(len(frames), rank, ranks), ())


def _loader(
    dataset: StudentDataset, config: StudentConfig, sampler: Sampler, sources: tuple[TeacherSource, ...]
) -> Loader:
    workers = config.data.workers
    return Loader(
        dataset,
        batch_size=config.training.batch_size,
        sampler=sampler,
        collate_fn=partial(collate, sources=sources),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
    )
