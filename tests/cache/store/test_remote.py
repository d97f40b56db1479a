"""Files at URLs: attempts, errors, and what arrives."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from cache.errors import ConfigError, CorruptStoreError, StoreError
from cache.store import remote
from cache.store.remote import RemoteFolder, local_path, patiently
from tests.factories.object_store import ObjectStore

DATA = bytes(range(256)) * 40


def require(expected: bytes, data: bytes) -> None:
    if data != expected:
        raise CorruptStoreError("other bytes", where="here")


def require_file(expected: bytes, file: int) -> None:
    require(expected, os.pread(file, len(expected) + 1, 0))


def fetched(folder: RemoteFolder, key: str) -> bytes:
    with TemporaryFile() as file:
        folder.fetch(key, len(DATA), file.fileno(), partial(require_file, DATA))
        return os.pread(file.fileno(), len(DATA) + 1, 0)


def fill(file: int) -> None:
    os.pwrite(file, DATA, 0)


def test_paths_and_urls() -> None:
    assert local_path("/a/b") == Path("/a/b")
    assert local_path(Path("a")) == Path("a")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("s3://bucket/store") is None


@pytest.mark.parametrize("fault", ["500", "cut", "wrong", "slow"])
def test_bytes_arrive_whole_whatever_the_server_does(
    bucket: ObjectStore, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 4000)  # three requests for a file
    folder = RemoteFolder(url="s3://bucket/faults")
    bucket.fail("PUT", fault)
    folder.write("small", DATA)
    bucket.fail("PUT", fault)
    folder.receive("large", fill, partial(require_file, DATA))
    bucket.heal()
    bucket.fail("GET .*/small", fault)
    bucket.fail("GET .*/large", fault)
    assert folder.read("small", partial(require, DATA)) == DATA
    assert fetched(folder, "large") == DATA
    attempts = {"slow": 3, "wrong": 6}.get(fault, 4)  # of a cut block, its block alone is fetched again
    assert bucket.count("GET .*/large") == attempts


def test_a_server_that_is_silent_is_asked_again(bucket: ObjectStore) -> None:
    folder = RemoteFolder(url="s3://bucket/silent")
    folder.write("key", DATA)
    bucket.fail("GET .*/key", "stall")
    assert folder.read("key", partial(require, DATA)) == DATA


def test_what_does_not_pass_is_reported(bucket: ObjectStore) -> None:
    folder = RemoteFolder(url="s3://bucket/lasting")
    folder.write("key", DATA)
    bucket.fail("GET .*/key", *["500"] * 5)
    with pytest.raises(StoreError, match=r"failed 5 times \(s3://bucket/lasting/key\); got .*InternalError"):
        folder.read("key")
    bucket.fail("GET .*/key", *["wrong"] * 5)
    with pytest.raises(CorruptStoreError, match="other bytes"):
        folder.read("key", partial(require, DATA))
    bucket.heal()
    with pytest.raises(CorruptStoreError, match=r"a file of the store is missing \(s3://bucket/lasting/none\)"):
        folder.read("none")
    assert folder.find("none") is None
    assert bucket.count("GET .*/none") == 2  # what is not there is not asked for again


def test_a_url_that_fsspec_does_not_read() -> None:
    with pytest.raises(ConfigError, match=r"a URL cannot be read or written .*nope://store/key.*Install the library"):
        RemoteFolder(url="nope://store").read("key")


def test_denied_access_is_not_tried_again() -> None:
    tries = []

    def denied() -> None:
        tries.append(1)
        raise PermissionError("Forbidden")

    with pytest.raises(StoreError, match=r"access to the store is denied \(s3://x\).*credentials"):
        patiently(denied, "s3://x")
    assert len(tries) == 1
