"""A small finished store, and no fsync."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories.stores import make_store


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """No test cuts the power, and fsync takes most of a small store's time; test_writer counts the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def sealed_store(tmp_path_factory: pytest.TempPathFactory, no_fsync: None) -> Path:
    """A finished store of 10 samples in shards of 4, not to be written to."""
    return make_store(tmp_path_factory.mktemp("store") / "teacher.zarr")
