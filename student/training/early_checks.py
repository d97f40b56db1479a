"""Mistakes that would only show in the metrics, caught before the first step or named after the last."""

import warnings
from pathlib import Path

from nuscenes.utils.splits import create_splits_scenes

from cache.errors import ConfigError, MismatchError, OfflineDistillWarning
from cache.spec import CacheSpec
from student.config.student import DataConfig, DetectorConfig, StudentConfig


def require_sound(config: StudentConfig) -> None:
    """Insist on what can be told from a training's configuration alone.

    Raises:
        ConfigError: training and validation share scenes, a split is unknown, or the grid is not in the LiDAR frame.
    """
    _require_disjoint(config.data)
    _require_lidar_frame(config.detector)


def _require_disjoint(data: DataConfig) -> None:
    scenes, (train, val) = create_splits_scenes(), (data.train_split, data.val_split)
    unknown = [name for name in (train, val) if name not in scenes]
    if unknown:
        raise ConfigError(
            "unknown split",
            where="data",
            got=", ".join(unknown),
            expected=f"some of {', '.join(scenes)}",
            cure="Change the split",
        )
    shared = sorted(set(scenes[train]) & set(scenes[val]))
    if shared:
        raise ConfigError(
            "training and validation share frames",
            where="data.train_split, data.val_split",
            got=f"{train} and {val}, with {len(shared)} scenes in both, the first is {shared[0]}",
            expected="splits without a common scene, such as train and val, or mini_train and mini_val",
            cure="Change one of them; a student can be evaluated on any split with `evaluate --split`",
        )


def _require_lidar_frame(detector: DetectorConfig) -> None:
    """Images, boxes and ego motion reach a student in the LiDAR frame; a grid of another would be mislabelled."""
    if detector.grid.frame != "lidar":
        raise ConfigError(
            "students live in the LiDAR frame",
            where="detector.grid.frame",
            got=detector.grid.frame,
            expected="lidar",
            cure="Leave it out; a cache of another frame is read where the student's cells lie",
        )


def require_fitting(spec: CacheSpec, path: Path, config: StudentConfig, inherits: bool) -> None:
    """Insist that a cache was dumped for this training.

    Args:
        inherits: whether the student's head begins as this teacher's.

    Raises:
        MismatchError: the cache is of another data set version, or the student would inherit a head of other tasks.
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
    if inherits and spec.teacher.tasks != tasks:
        raise MismatchError(
            "the teacher's head is ordered otherwise than the student's, which is to inherit it",
            where=path,
            got=_listed(spec.teacher.tasks),
            expected=_listed(tasks),
            cure="Set detector.head.tasks to the teacher's tasks, or distill.inherit_head to false",
        )


def warn_of_rehearsal(spec: CacheSpec, path: Path) -> None:
    """Warn that a cache's teacher has random weights."""
    if spec.teacher.weights == "random":
        warnings.warn(
            f"{path} holds the features of a teacher with random weights: a rehearsal, from which a student learns "
            "nothing; dump a trained teacher with --checkpoint",
            OfflineDistillWarning,
            stacklevel=2,
        )


def _listed(tasks: tuple[tuple[str, ...], ...]) -> str:
    return "; ".join(", ".join(task) for task in tasks)
