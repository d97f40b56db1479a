"""All checks of a training before its first step: configuration, run's folder, data set, caches."""

import os
import shutil
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import nn

from cache.errors import ConfigError, DataError, MismatchError, NotCachedError, OfflineDistillWarning
from cache.nuscenes.completeness import largest_width, on_disk, require_listed, warn_of_missing, without
from cache.nuscenes.counts import count_boxes, require_boxes, warn_of_boxes
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import require_open_files, require_shared_memory, shared_bytes
from cache.spec import CacheSpec
from cache.store.reader import TeacherCache
from cache.terminal.console import print_note
from student.config.student import DataConfig, StudentConfig
from student.config.training import TrainingConfig
from student.data.dataset import StudentDataset
from student.data.samplers import Order
from student.data.teacher_source import TeacherSource
from student.evaluation.evaluate import require_devkit
from student.evaluation.limits import metric_limits
from student.evaluation.truth import require_truth
from student.models.checkpoint import step_to_resume
from student.training.launcher import is_first_rank
from student.training.memory import checkpoint_bytes, tensors_of


def require_sound(config: StudentConfig) -> None:
    """Raise unless the detector's grid is in the LiDAR frame.

    Raises:
        ConfigError: it is in another.
    """
    # Images, boxes and ego motion reach a student in the LiDAR frame; a grid of another would be mislabelled.
    if config.detector.grid.frame != "lidar":
        raise ConfigError(
            "the student's grid must be in the LiDAR frame",
            where="detector.grid.frame",
            got=config.detector.grid.frame,
            expected="lidar",
            cure="Leave it out; a cache of another frame is read where the student's cells lie",
        )


def resolve_devices(config: StudentConfig) -> StudentConfig:
    """The same with `devices` a number: the sequence of samples, and so a resumed training, depends on it.

    Raises:
        ConfigError: more devices than GPUs, or an option needs a GPU or a compiler that is not there.
    """
    training, gpus = config.training, torch.cuda.device_count()
    devices = max(1, gpus) if training.devices == "auto" else training.devices
    if gpus and devices > gpus:
        raise ConfigError(
            "more devices than GPUs",
            where="training.devices",
            got=devices,
            expected=f"at most {gpus}",
            cure='Lower it, or say "auto"',
        )
    if not gpus:
        _require_no_gpu_option(training)
    if training.compile:
        _require_compiler()
    return config.model_copy(update={"training": training.model_copy(update={"devices": devices})})


def _require_no_gpu_option(training: TrainingConfig) -> None:
    needs_gpu = {"precision": training.precision == "16-mixed", "sync_batchnorm": training.sync_batchnorm}
    for name in (name for name, needed in needs_gpu.items() if needed):
        raise ConfigError(
            "there is no GPU, and an option needs one",
            where=f"training.{name}",
            got=getattr(training, name),
            cure="Train on a GPU, or leave it out (bf16-mixed runs on a CPU too)",
        )


def _require_compiler() -> None:
    if not any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++")):
        raise ConfigError(
            "torch.compile needs a C++ compiler",
            where="training.compile",
            got="none of $CXX, g++, clang++ and c++ on the PATH",
            cure="Install one, or leave training.compile out",
        )


def first_step(last: Path, config: StudentConfig, resume: bool) -> int:
    """The step to begin with: 0, or that of the last checkpoint.

    Raises:
        ConfigError: nothing to resume, another training in the folder, or a checkpoint of another configuration.
        DataError: the checkpoint cannot be read.
    """
    if resume and not last.exists():
        raise ConfigError("nothing to resume", where=last, cure="Leave --resume out, or name the run with --out")
    if last.exists() and not resume:
        raise ConfigError(
            "a training is there already",
            where=last.parent.parent,
            cure="Continue it with --resume, or give another --out",
        )
    return step_to_resume(last, config) if resume else 0


def require_disk_space(out: Path, module: nn.Module, files: Sequence[Path], average: bool) -> None:
    """Raise ConfigError unless a run's folder can be written and has room for its checkpoints, plus one being replaced.

    Args:
        files: the checkpoints that the run keeps.
        average: whether they hold an average of the weights beside the weights.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            "the run's folder cannot be written", where=out, got=error.strerror, cure="Give another --out"
        ) from None
    size = checkpoint_bytes(module, average)
    needed, free = size * (1 + sum(not path.exists() for path in files)), shutil.disk_usage(out).free
    if needed > free:
        raise ConfigError(
            "the checkpoints will not fit on the disk",
            where=out,
            got=f"{free / 1e9:,.2f} GB free",
            expected=f"{needed / 1e9:,.2f} GB, {size / 1e9:,.2f} GB for each checkpoint",
            cure="Free some space, or give another --out",
        )


PREFETCHED = 2
"""Batches that each worker holds ready; torch's default."""


def require_loader_resources(dataset: StudentDataset, config: StudentConfig) -> None:
    """Load one sample, and raise unless shared memory and open files suffice for the workers' batches of such samples.

    Raises:
        ConfigError: they do not.
        DataError: the sample's files are missing or broken.
    """
    training, workers = config.training, config.data.workers
    if not workers:
        return
    tensors = list(tensors_of(dataset.collate([dataset[0]])))
    # One batch is in use, and one on its way. Boxes and labels are a tensor for each sample.
    batches = PREFETCHED * workers + 2
    require_shared_memory(training.batch_size * shared_bytes(tensors), batches, int(training.devices))
    require_open_files(len(tensors) + 2 * (training.batch_size - 1), batches)


def require_full_step(order: Order, training: TrainingConfig) -> None:
    """Raise ConfigError unless the frames of an epoch fill one step."""
    if not len(order):
        raise DataError(
            "an epoch has no frame",
            where="training.class_balanced",
            got="no box of a class of detector.head.tasks",
            cure="Set training.class_balanced to false, or change the tasks or the split",
        )
    if len(order) < training.samples_per_step:
        raise ConfigError(
            "one step needs more samples than an epoch has",
            where="training.batch_size",
            got=f"{training.batch_size} x {training.accumulate} batches x {training.ranks} devices of all nodes",
            expected=f"at most {len(order)} samples",
            cure="Lower batch_size, accumulate or devices",
        )


def require_disjoint_splits(data: DataConfig, frames: Frames) -> None:
    """Raise unless the splits of training, validation, and frames without labels share no scene.

    Raises:
        ConfigError: they do, or a split is unknown.
        DataError: splits.json beside the tables is broken.
    """
    splits = {"train_split": data.train_split, "val_split": data.val_split, "unlabelled_split": data.unlabelled_split}
    for (one, first), (other, second) in combinations(splits.items(), 2):
        shared = sorted(frames.scenes_of(first) & frames.scenes_of(second)) if first and second else []
        if shared:
            raise ConfigError(
                "training and validation share frames"
                if other == "val_split"
                else "frames without labels are of training or validation, too",
                where=f"data.{one}, data.{other}",
                got=f"{first} and {second}, with {len(shared)} scenes in both, the first is {shared[0]}",
                expected="splits without a common scene, such as train and val, or mini_train and mini_val",
                cure="Change one of them; a student can be evaluated on any split with `evaluate --split`",
            )


def look_at_boxes(frames: Frames) -> None:
    """Show what there is to learn from in one line, and warn of what is suspicious about it.

    Raises:
        DataError: there is no box.
    """
    where, counts = f"{frames.version}, {', '.join(frames.splits)}", count_boxes(frames)
    if is_first_rank():
        print_note(f"{where}: {counts}")
        warn_of_boxes(counts, where)
    require_boxes(counts, where)


def chosen_frames(frames: Frames, config: StudentConfig, lidar: bool) -> Frames:
    """The frames without those that data.exclude and data.skip_missing leave out.

    Args:
        lidar: whether a detector that learns depth takes it from LiDAR files.

    Raises:
        ConfigError: data.exclude names a frame that is not there, or all of them.
        DataError: no frame has all its files.
    """
    data, detector = config.data, config.detector
    if data.exclude:
        frames = without(frames, frozenset(data.exclude))
    if not data.skip_missing:
        return frames
    depth = lidar and detector.name.startswith("bevdepth")
    channels = (*frames.cameras, *([frames.lidar] if depth else ()))
    found = on_disk(frames, channels, history=(detector.times - 1) * detector.history_step)
    if is_first_rank():
        warn_of_missing(frames, found, "data.skip_missing")
    return found


def require_images(frames: Frames, config: StudentConfig) -> None:
    """Raise unless the tables list every frame's images, and no draw of the augmentation makes them vanish.

    Raises:
        DataError: they do not.
        ConfigError: a draw does.
    """
    require_listed(frames)
    ratio = config.image.size[1] / largest_width(frames)
    least = {"resize": config.image.resize[0], "resize_test": config.image.resize_test}
    for name, added in least.items():
        if ratio + added <= 0:
            raise ConfigError(
                "the image augmentation shrinks images to nothing",
                where=f"image.{name}",
                got=f"{added:g} added to a ratio of widths of {ratio:.3f}",
                expected=f"more than {-ratio:.3f}",
                cure="Raise it",
            )


def warn_of_metric_limits(config: StudentConfig, train: Frames) -> None:
    """Warn of what the official metrics cannot measure of data.val_split, whether the run validates or not."""
    if not is_first_rank():
        return
    split = config.data.val_split
    try:
        frames = train.of_splits(split)
    except DataError:
        limits: tuple[str, ...] = ("it holds no key frame here: `evaluate` will need another --split, or its frames",)
    else:
        limits = metric_limits(frames, [name for task in config.detector.head.tasks for name in task])
    for limit in limits:
        text = f"official metrics on {train.version}, {split} (data.val_split): {limit}"
        warnings.warn(text, OfflineDistillWarning, stacklevel=2)


def validation_frames(config: StudentConfig, train: Frames) -> Frames | None:
    """The frames of data.val_split; None without validation.

    Raises:
        ConfigError: the devkit is not installed.
        DataError: it has no key frame in this version, no annotations, or some that cannot be evaluated.
    """
    if not config.training.validate_every:
        return None
    require_devkit("training.validate_every")
    frames = chosen_frames(train.of_splits(config.data.val_split), config, lidar=False)
    require_images(frames, config)
    if not frames.label_counts().any():
        raise DataError(
            "the validation split has no annotations",
            where=f"{frames.version}, {config.data.val_split}",
            cure="Change data.val_split, or set training.validate_every to 0",
        )
    require_truth(frames)
    return frames


def require_fitting_sources(sources: Sequence[TeacherSource], config: StudentConfig, frames: Frames) -> None:
    """Raise unless the caches fit the student and hold its frames.

    Raises:
        ConfigError: distillation without a cache.
        MismatchError: see `require_fitting`; or a cache is of another LiDAR, or has the depth of other cameras.
        NotCachedError: a cache lacks a frame of the training split, or the first one drawn views to replay.
    """
    if config.distill is None:
        return
    if not sources:
        raise ConfigError(
            "distillation needs a teacher's cache",
            where="distill",
            cure="Give --cache STORE, or switch distillation off with --set distill=null",
        )
    for index, source in enumerate(sources):
        inherits = config.distill.inherit_head and index == 0
        require_fitting(source.cache.spec, source.cache.path, config, inherits)
        source.cache.spec.require({"data": {"lidar": frames.lidar}}, source.cache.path)
        _require_tokens(source.cache, frames)
        if source.cache.spec.depth is not None:
            require_depth_cameras(source.cache, frames.cameras)
    if config.bev_augment.replay:
        _require_drawn_views(sources[0].cache)


def require_fitting(spec: CacheSpec, path: Path, config: StudentConfig, inherits: bool) -> None:
    """Raise unless a cache is of the student's data set and, where its head is inherited, has the student's tasks.

    Raises:
        MismatchError: it is of another version, its teacher has no CenterHead to inherit, or its tasks are others or in
            another order.
    """
    version, tasks = spec.data.version, config.detector.head.tasks
    if version != config.data.version:
        raise MismatchError(
            "the cache is of another version of the data set",
            where=path,
            got=version,
            expected=f"{config.data.version}, as data.version says",
            cure="Dump the teacher on this version, or change data.version",
        )
    if inherits and spec.heatmap == "none":
        raise MismatchError(
            "the teacher has no head that the student could inherit",
            where=path,
            got=f"{spec.teacher.name}, heatmap: none",
            expected="a teacher with a CenterHead",
            cure="Set distill.inherit_head to false",
        )
    if inherits and spec.teacher.tasks != tasks:
        got, expected = ("; ".join(", ".join(task) for task in each) for each in (spec.teacher.tasks, tasks))
        raise MismatchError(
            "the teacher's head is ordered otherwise than the student's, which is to inherit it",
            where=path,
            got=got,
            expected=expected,
            cure="Set detector.head.tasks to the teacher's tasks, or distill.inherit_head to false",
        )


def require_depth_cameras(cache: TeacherCache, cameras: tuple[str, ...]) -> None:
    """Raise MismatchError unless a store keeps the depth of the student's cameras."""
    cache.spec.require({"depth": {"cameras": cameras}}, cache.path)


def _require_tokens(cache: TeacherCache, frames: Frames) -> None:
    missing = [token for token in frames.tokens if token not in cache]
    if missing:
        raise NotCachedError(
            "frames of the training split are not in the cache",
            where=cache.path,
            got=f"{len(missing)} of {len(frames)} missing, the first is {missing[0]}",
            expected=f"all of {frames.version} {', '.join(frames.splits)}",
            cure="Dump the teacher on this split, or train on the one that was dumped; what the dump left out goes "
            "into data.exclude",
        )


def _require_drawn_views(cache: TeacherCache) -> None:
    if cache.spec.drawn is None:
        raise NotCachedError(
            "the store holds no drawn views to replay",
            where=cache.path,
            got=f"the views {', '.join(cache.spec.views)}",
            cure="Dump the teacher with views.drawn, or set bev_augment.replay to false",
        )


def warn_of_random_weights(spec: CacheSpec, path: Path) -> None:
    """Warn of a cache whose teacher has random weights."""
    if spec.teacher.weights == "random":
        warnings.warn(
            f"{path} holds the features of a teacher with random weights: a rehearsal, from which a student learns "
            "nothing; dump a trained teacher with --checkpoint",
            OfflineDistillWarning,
            stacklevel=2,
        )
