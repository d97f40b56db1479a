"""Set up a training: checks, data, and a module with its first weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from torch.utils.data import DistributedSampler, Sampler

from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.store.remote import local_path
from cache.store.stored_frames import StoredFrames
from cache.terminal.console import print_note
from student.config.student import StudentConfig
from student.config.training import TrainingConfig
from student.converters.image_weights import load_image_weights
from student.data.dataset import LabelledBoxes, StudentDataset
from student.data.samplers import ClassBalanced, Order, SeededSampler, Shuffled
from student.data.teacher_source import TeacherSource, open_cache
from student.distill.inherit import inherit_head
from student.evaluation.teacher_boxes import predicted_boxes
from student.models.checkpoint import start_from
from student.models.teacher_head import build_teacher_head
from student.training import preflight
from student.training.checkpointing import BEST, LAST, ignore_stop_signals, remove_partial_checkpoints
from student.training.launcher import is_first_rank, require_agreement
from student.training.module import StudentModule
from student.training.shard_order import in_shards


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """A training that can begin.

    config: the training's, with `devices` a number.
    order: of an epoch's frames.
    step: the step to begin with, 0 unless resumed.
    left_out: frames of the training split that data.exclude and data.skip_missing leave out.
    val_frames: of the validation split; None without validation.
    """

    config: StudentConfig
    module: StudentModule
    dataset: StudentDataset
    order: Order
    step: int
    val_frames: Frames | None
    left_out: int = 0

    def sampler(self, rank: int = 0) -> SeededSampler:
        """The sequence of a rank's samples, from `step` on."""
        training = self.config.training
        sampler = SeededSampler(self.order, training.seed, training.samples_per_step, rank, training.ranks)
        sampler.go_to(self.step)
        return sampler

    def loader(self, rank: int = 0) -> Loader:
        """A rank's batches, with the teachers' samples."""
        return _loader(self.dataset, self.config, self.sampler(rank))

    def validation_loader(self, rank: int = 0) -> Loader | None:
        """The batches of a rank's share of the validation split, without augmentation; None without validation."""
        if self.val_frames is None:
            return None
        dataset = StudentDataset(self.val_frames, self.config, self.dataset.times)
        # As many frames for every rank: the first ones are repeated.
        share: Sampler = DistributedSampler(dataset, self.config.training.ranks, rank, shuffle=False)
        return _loader(dataset, self.config, share)


def set_up_training(
    config: StudentConfig,
    root: Path,
    cache_paths: Sequence[str | Path],
    out: Path | None = None,
    resume: bool = False,
    frames: Frames | None = None,
) -> TrainingSetup:
    """Check and build all that a training begins with.

    Args:
        cache_paths: the teachers' caches, or their URLs, in the order of their indices in `config.distill`.
        out: the run's folder; None where nothing will be written, nothing validated and no image weights are fetched.
        resume: go on from the run's last checkpoint.
        frames: to train on; those of data.train_split and data.unlabelled_split by default.

    Raises:
        ConfigError, MismatchError, NotCachedError, DataError: see `student.training.preflight`.
        StoreError: a cache cannot be opened.
    """
    preflight.require_sound(config)
    config = preflight.resolve_devices(config)
    if out is not None:
        require_agreement(int(config.training.devices), config.training.nodes)
    step = 0 if out is None else preflight.first_step(out / LAST, config, resume)
    if out is not None:
        remove_partial_checkpoints(out)
    if frames is None:
        data, store = config.data, _frames_store(cache_paths, config)
        frames = Frames(
            root=root,
            version=data.version,
            splits=(data.train_split,),
            max_sweeps=0,
            cameras=data.cameras,
            lidar=data.lidar,
            store=store,
        )
    preflight.require_disjoint_splits(config.data, frames)
    if config.data.unlabelled_split:
        frames = frames.of_splits(config.data.train_split, config.data.unlabelled_split)
    paths = cache_paths if config.distill else ()
    sources = [TeacherSource.open(path, config, index) for index, path in enumerate(paths)]
    all_frames, lidar = len(frames), not any(source.cache.spec.depth for source in sources)
    val_frames = None if out is None else preflight.validation_frames(config, frames)
    frames = preflight.chosen_frames(frames, config, lidar)
    preflight.require_images(frames, config)
    frames_order = _order(frames, config)
    preflight.require_full_step(frames_order, config.training)
    preflight.require_fitting_sources(sources, config, frames)
    order = in_shards(frames_order, sources, config, frames)
    module, origin = _first_module(config, sources, resume, fetch=out is not None)
    if out is not None:
        files = [out / LAST, out / BEST] if val_frames else [out / LAST]
        preflight.require_disk_space(out, module, files, average=config.training.ema is not None)
    unlabelled = _unlabelled(config, frames, sources)
    preflight.look_at_boxes(frames.keeping(lambda token: token not in unlabelled))
    if origin is not None and is_first_rank():
        print_note(f"image backbone {config.detector.image_backbone}: {origin}")
    preflight.warn_of_metric_limits(config, frames)
    detector = module.detector
    dataset = StudentDataset(frames, config, detector.times, detector.supervise_depth, sources, unlabelled)
    if out is not None:
        preflight.require_loader_resources(dataset, config)
    return TrainingSetup(
        config=config,
        module=module,
        dataset=dataset,
        order=order,
        step=step,
        val_frames=val_frames,
        left_out=all_frames - len(frames),
    )


def make_trainer(training: TrainingConfig, **options: Any) -> lightning.Trainer:
    """Lightning's trainer, for samplers that know their rank; progress is reported by callbacks."""
    return lightning.Trainer(
        accelerator="auto",
        precision=training.precision,
        gradient_clip_val=training.gradient_clip,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **options,
    )


def _frames_store(cache_paths: Sequence[str | Path], config: StudentConfig) -> StoredFrames | None:
    """The frames of the first cache, which stand in for tables."""
    if not cache_paths:
        return None
    local = local_path(cache_paths[0])
    return StoredFrames(path=open_cache(cache_paths[0], config.data).path if local is None else local)


def _order(frames: Frames, config: StudentConfig) -> Shuffled | ClassBalanced:
    if not config.training.class_balanced:
        return Shuffled(frames=len(frames))
    classes = [name for task in config.detector.head.tasks for name in task]
    return ClassBalanced.of(frames.label_counts(), classes)


def _unlabelled(
    config: StudentConfig, frames: Frames, sources: Sequence[TeacherSource]
) -> Mapping[str, LabelledBoxes | None]:
    """The frames of data.unlabelled_split, with the first teacher's boxes where these are learnt."""
    if not config.data.unlabelled_split:
        return {}
    among = set(frames.of_splits(config.data.unlabelled_split).tokens)
    tokens = [token for token in frames.tokens if token in among]
    score = config.distill.pseudo_labels if config.distill else None
    return dict.fromkeys(tokens) if score is None else predicted_boxes(sources[0].cache, tokens, score)


def _first_module(
    config: StudentConfig, sources: Sequence[TeacherSource], resumed: bool, fetch: bool
) -> tuple[StudentModule, str | None]:
    """The module as its seed, `init_from` or `image_weights` (unless resumed) and its teacher's head make it.

    Args:
        fetch: torchvision's image weights, where the configuration asks for them.

    Returns:
        The module, and what its image backbone starts from where that is neither a run nor a student's checkpoint.
    """
    lightning.seed_everything(config.training.seed, verbose=False)
    crossed = config.distill.crossed_caches if config.distill is not None else ()
    heads = {cache: build_teacher_head(sources[cache].cache) for cache in crossed}
    module, origin = StudentModule(config, [source.cache.spec for source in sources], heads), None
    if config.training.init_from is not None and not resumed:
        start_from(module.detector, config.training.init_from)
    elif not resumed and (fetch or isinstance(config.detector.image_weights, Path)):
        origin = load_image_weights(module.detector)
    if config.distill is not None and config.distill.inherit_head:
        weights, shared = sources[0].cache.head_weights(), config.distill.inherit_shared_conv
        inherit_head(module.detector.head, weights, shared)
    return module, origin


def _loader(dataset: StudentDataset, config: StudentConfig, sampler: Sampler) -> Loader:
    workers = config.data.workers
    return Loader(
        dataset,
        batch_size=config.training.batch_size,
        sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stop_signals,
    )
