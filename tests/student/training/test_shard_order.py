"""Trainings by the shards of stores, from an object store."""

from pathlib import Path

import numpy as np
import pytest

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.errors import ConfigError
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec
from cache.store.copy import copy_store
from student.config.student import StudentConfig
from student.data.samplers import ByShards
from student.training.setup import TrainingSetup, set_up_training
from tests.factories.object_store import ObjectStore
from tests.factories.students import TINY, make_teacher

URL = "s3://bucket/trained"
DISTILL = {
    "pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}],
    "terms": [{"kind": "all", "weight": 1.0}],
    "inherit_head": False,
}


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory: pytest.TempPathFactory, made_frames: Frames) -> Path:
    """Two frames in two shards."""
    path = tmp_path_factory.mktemp("shards") / "teacher.zarr"
    layers = {"head": CodecSpec(), "backbone0": CodecSpec()}
    dump(DumpConfig(teacher="small", layers=layers, samples_per_shard=1, workers=0), made_frames, make_teacher(), path)
    return path


def student(local_cache: Path | None = None, local_cache_gb: float | None = None, **training: object) -> StudentConfig:
    data = {"local_cache": local_cache, "local_cache_gb": local_cache_gb, "workers": 2}
    grid = TINY["detector"]["grid"] | {"cell_m": [0.8, 0.8]}  # the teacher's
    values = {"data": TINY["data"] | data, "training": TINY["training"] | training, "distill": DISTILL}
    return StudentConfig.model_validate(TINY | values | {"detector": TINY["detector"] | {"grid": grid}})


def tokens(setup: TrainingSetup) -> list[tuple[str, ...]]:
    return [batch.tokens for batch in setup.loader()]


def test_an_epoch_from_an_object_store_fetches_each_shard_once(
    bucket: ObjectStore, two_shards: Path, made_root: Path, tmp_path: Path
) -> None:
    copy_store(two_shards, URL)
    bucket.heal()
    config = student(tmp_path / "cache", 1.0, shuffle="shards", shuffle_window=1)
    remote = set_up_training(config, made_root, [URL])
    local = set_up_training(config, made_root, [two_shards])
    assert isinstance(remote.order, ByShards)
    assert list(remote.sampler()) == list(local.sampler())
    for ours, theirs in zip(remote.loader(), local.loader(), strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.teachers[0].features["head"].values.equal(theirs.teachers[0].features["head"].values)
    assert tokens(remote) == tokens(local)  # a second epoch's worth, from the local cache
    fetched = [request for request in bucket.requests if "/features/head/c." in request]
    assert len(fetched) == len(set(fetched)) == 2
    assert not bucket.count("features/backbone0/c")  # no layer that the objective does not compare


def test_frames_of_a_store_at_a_url_stand_in_for_tables(
    bucket: ObjectStore, two_shards: Path, made_root: Path, tmp_path: Path
) -> None:
    copy_store(two_shards, URL)
    images = tmp_path / "images"
    images.mkdir()
    (images / "samples").symlink_to(made_root / "samples")
    setup = set_up_training(student(tmp_path / "cache"), images, [URL])
    assert set(setup.dataset.frames.tokens) == set(
        Frames(root=made_root, version="v1.0-mini", splits=("mini_train",)).tokens
    )


def test_refusals(bucket: ObjectStore, two_shards: Path, made_root: Path, tmp_path: Path) -> None:
    copy_store(two_shards, URL)
    with pytest.raises(ConfigError, match=r"through a local folder \(s3://bucket/trained\).*data\.local_cache"):
        set_up_training(student(), made_root, [URL])
    with pytest.raises(ConfigError, match=r"fetched again and again .*all shards, since samples of all are shuffled"):
        set_up_training(student(tmp_path / "cache", 1e-5), made_root, [URL])
    with pytest.raises(ConfigError, match=r"three windows of shards.*smaller training\.shuffle_window"):
        set_up_training(student(tmp_path / "cache", 1e-5, shuffle="shards"), made_root, [URL])
    alone = StudentConfig.model_validate(TINY | {"training": TINY["training"] | {"shuffle": "shards"}})
    with pytest.raises(ConfigError, match=r"no store whose shards could be shuffled \(training\.shuffle\)"):
        set_up_training(alone, made_root, ())


def test_windows_are_of_the_stores_shards(two_shards: Path, made_root: Path, made_frames: Frames) -> None:
    setup = set_up_training(student(shuffle="shards", shuffle_window=1), made_root, [two_shards])
    assert isinstance(setup.order, ByShards)
    assert np.array_equal(setup.order.shard_of, [0, 1])
    assert len(setup.order) == len(made_frames)
