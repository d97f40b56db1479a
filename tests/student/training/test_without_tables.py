"""A training of a machine that has images and a store, and no tables."""

from pathlib import Path

import pytest

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from cache.store.stored_frames import StoredFrames
from student.training.setup import set_up_training
from tests.factories.students import tiny_student


@pytest.fixture
def images(made_root: Path, tmp_path: Path) -> Path:
    """A root of sensor files alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(made_root / name)
    return folder


def test_batches_are_those_with_tables(views_store: Path, made_root: Path, images: Path) -> None:
    config = tiny_student()
    with_tables, without = (set_up_training(config, root, [views_store]) for root in (made_root, images))
    assert list(without.sampler()) == list(with_tables.sampler())
    for ours, theirs in zip(without.loader(), with_tables.loader(), strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.images.equal(theirs.images)
        assert all(our.equal(their) for our, their in zip(ours.boxes, theirs.boxes, strict=True))


def test_validation_needs_its_frames_too(views_store: Path, tmp_path: Path) -> None:
    """The store was dumped on mini_train alone."""
    with pytest.raises(DataError, match=r"the split holds no key frame .*mini_val"):
        Frames(root=tmp_path, version="v1.0-mini", splits=("mini_val",), store=StoredFrames(path=views_store))
