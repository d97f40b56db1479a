"""Files of an untrusted store: pipes, links, devices, sizes, chunks that are not what they say."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numcodecs import zstd

from cache.dumping.verify import verify
from cache.errors import CorruptStoreError
from cache.store.documents import parse_json
from cache.store.files import read_file
from cache.store.format import content_size, most_stored, unpack_chunk, with_checksum
from cache.store.reader import TeacherCache
from tests.factories.stores import make_tokens

TOKENS = make_tokens(10)


@pytest.fixture
def store(sealed_store, tmp_path) -> Path:
    return shutil.copytree(sealed_store, tmp_path / "teacher.zarr")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [pipe, link, folder])
@pytest.mark.parametrize(
    "key", ["zarr.json", "manifest/1.json", "token/c.0.0", "heatmap/c.1.0.0.0.0", "heatmap/zarr.json"]
)
def test_only_regular_files_are_read(store, make, key):
    make(store / key)
    (damage,) = verify(store).damage
    assert str(store) in str(damage.error)


def test_a_folder_that_is_a_link_is_named(store, tmp_path):
    shutil.move(store / "heatmap", tmp_path / "elsewhere")
    (store / "heatmap").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStoreError, match="a link, a pipe or a device") as caught:
        TeacherCache(store)[TOKENS[0]]
    assert "cp -rL" in str(caught.value)


def test_the_store_itself_may_be_a_link(store, tmp_path):
    (tmp_path / "link.zarr").symlink_to(store)
    assert TeacherCache(tmp_path / "link.zarr")[TOKENS[0]].token == TOKENS[0]


def test_a_file_of_many_bytes_is_not_read(store):
    os.truncate(store / "token/c.0.0", 10**12)
    with pytest.raises(CorruptStoreError, match="a file of the store is too large"):
        read_file(store, "token/c.0.0")


@pytest.mark.parametrize("size", [1, 255, 256, 65791, 65792, 10**6])
@pytest.mark.parametrize("level", [1, 19])
def test_the_size_that_a_frame_says(size, level):
    values = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    frame = zstd.compress(values, level)
    assert content_size(frame[:18]) == size
    assert len(with_checksum(frame)) <= most_stored(size)


def test_a_chunk_of_fewer_bytes_leaves_nothing_of_the_earlier_one():
    out = np.full(100, 7, np.uint8)
    stored = np.frombuffer(with_checksum(zstd.compress(np.zeros(40, np.uint8), 1)), np.uint8)
    with pytest.raises(CorruptStoreError, match=r"does not fill its place \(here\); got 40 bytes; expected 100"):
        unpack_chunk(stored, out, "here")
    assert (out == 7).all()


@pytest.mark.parametrize("data", [b"[" * 10**5 + b"]" * 10**5, b"[1]", b'{"a": NaN}', b"\xff", b"9" * 10**5])
def test_json_that_is_no_finite_object(data):
    with pytest.raises(CorruptStoreError, match=r"a document of the store is broken \(here\)"):
        parse_json(data, "here")
