"""The order of an epoch by the shards of a store, and the room that its shards need in a local cache."""

from collections.abc import Sequence

import numpy as np

from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from cache.store.layout import DEPTH_POINTS, batch_arrays
from student.config.student import StudentConfig
from student.data.samplers import ByShards, ClassBalanced, Order, Shuffled
from student.data.teacher_source import TeacherSource

WINDOWS = 3
"""In use at a time: that of slow workers, that of the others, and the one that is fetched ahead."""


def in_shards(
    order: Shuffled | ClassBalanced, sources: Sequence[TeacherSource], config: StudentConfig, frames: Frames
) -> Order:
    """The order, by the shards of the caches where training.shuffle says so.

    Raises:
        ConfigError: there is no cache, or the caches at URLs are cut differently; or the local cache's limit would have
            shards fetched again and again.
    """
    training, remote = config.training, [source for source in sources if source.cache.url]
    if remote and config.data.local_cache_gb is not None:
        _require_local_room(remote, config, frames)
    if training.shuffle == "samples":
        return order
    if not sources:
        raise ConfigError(
            "there is no store whose shards could be shuffled",
            where="training.shuffle",
            got="shards, and no teacher's cache",
            cure="Give --cache STORE, or set training.shuffle to samples",
        )
    first, *others = [source.cache.shards_of(frames.tokens) for source in remote or sources[:1]]
    if any((first != other).any() for other in others):
        raise ConfigError(
            "the stores at URLs are cut into different shards",
            where="training.shuffle",
            cure="Copy all but one to a local folder with `cli copy`",
        )
    return ByShards(order=order, shard_of=first, window=training.shuffle_window)


def _require_local_room(remote: Sequence[TeacherSource], config: StudentConfig, frames: Frames) -> None:
    """Raise ConfigError where the local cache's limit is below the shards that are in use at a time."""
    training, limit_gb = config.training, config.data.local_cache_gb or 0
    by_shards, size = training.shuffle == "shards", 0.0
    for source in remote:
        shards = np.unique(source.cache.shards_of(frames.tokens))
        at_a_time = min(len(shards), WINDOWS * training.shuffle_window) if by_shards else len(shards)
        stored = source.cache.bytes_per_sample([int(shards[0])])
        arrays = batch_arrays(source.layers) | {DEPTH_POINTS}
        size += at_a_time * source.cache.shards.size * sum(stored[name] for name in stored if name in arrays)
    if size > 1e9 * limit_gb:
        needed = "three windows of shards" if by_shards else "all shards, since samples of all are shuffled"
        raise ConfigError(
            "the local cache is too small: shards would be fetched again and again",
            where="data.local_cache_gb",
            got=f"{limit_gb:g} GB",
            expected=f"at least {size / 1e9:.3f} GB: {needed}",
            cure="Raise it, or set training.shuffle to shards with a smaller training.shuffle_window",
        )
