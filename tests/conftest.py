"""Shapes and types checked while testing, one thread a process, and two small data sets."""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import torch
from jaxtyping import install_import_hook

# Tests run side by side, one on each core; processes that they start inherit this. Sums of floats depend on how many
# threads share them, and stores are compared byte by byte.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)  # pytest-xdist's workers get 80; a table that is captured has no width to fit
torch.set_num_threads(1)

# Shapes and types in signatures are checked while testing; an int is accepted as a float (PEP 484).
install_import_hook(["cache", "student", "demo"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from cache.nuscenes.frames import Frames  # noqa: E402
from demo.world.config import WorldConfig  # noqa: E402
from demo.world.make import make_world  # noqa: E402
from tests.factories.object_store import ObjectStore, object_store  # noqa: E402

ONE_FRAME = Path(__file__).parent.parent.parent / "shared" / "nuscenes-one-frame"


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of the tests' tables do not stay in the user's cache; matplotlib's list of fonts, slow to make, does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


OPTIONAL = ("nuscenes", "mmdet3d", "mmcv", "mmengine")
"""Libraries that a training does without; under some Pythons they are not to be had."""

MISSING = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
NEEDS = {"nuscenes": r"(?:nuscenes|tests\.factories\.devkit)"}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the modules that import a library that is not installed."""
    if not MISSING or collection_path.suffix != ".py":
        return None
    pattern = rf"^(?:from|import) (?:{'|'.join(NEEDS.get(name, name) for name in MISSING)})\b"
    return re.search(pattern, collection_path.read_text(encoding="utf-8"), re.MULTILINE) is not None or None


def pytest_report_header() -> str | None:
    return f"left out: the modules that import {', '.join(MISSING)}, not installed" if MISSING else None


@pytest.fixture(scope="session")
def devkit() -> ModuleType:
    """nuscenes-devkit, which the official metrics need."""
    return pytest.importorskip("nuscenes", reason="the devkit is not installed (the extra evaluate)")


@pytest.fixture(scope="session")
def running_object_store() -> Iterator[ObjectStore]:
    """An S3 server, for the whole session."""
    with object_store() as store:
        yield store


@pytest.fixture
def bucket(running_object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server without faults, s3://bucket; attempts follow each other at once."""
    monkeypatch.setattr("cache.store.remote.WAITS_S", (0.01,) * 4)
    running_object_store.heal()
    return running_object_store


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules of slow tests: each goes to one worker, and none is left for the end."""
    for item in items:
        if "workshop" in getattr(item, "fixturenames", ()):  # test_cli's
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real nuScenes key frame, which is not part of the project."""
    if not ONE_FRAME.is_dir():
        pytest.skip("the real nuScenes frame is not here (non-commercial licence: it is not part of the project)")
    return ONE_FRAME


@pytest.fixture(scope="session")
def real_frames(real_root: Path) -> Frames:
    """The real key frame as the only frame of mini_train."""
    return Frames(root=real_root, version="v1.0-mini", splits=("mini_train",))


@pytest.fixture(scope="session")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny made-up world: two frames of mini_train, two of mini_val."""
    root = tmp_path_factory.mktemp("made") / "world"
    size = WorldConfig(
        train_scenes=1, val_scenes=1, key_frames=2, past_sweeps=1, image_size=(144, 256), lidar_azimuths=360
    )
    make_world(root, size, processes=1)
    return root


@pytest.fixture(scope="session")
def made_frames(made_root: Path) -> Frames:
    """The two frames of mini_train of the made-up world."""
    return Frames(root=made_root, version="v1.0-mini", splits=("mini_train",))
