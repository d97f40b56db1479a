"""A tiny world, made once."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from demo.world.make import VERSION, make_world, scene_names
from demo.world.scene import Scene, build_scene
from tests.factories.scenes import TINY


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's folder."""
    out = tmp_path_factory.mktemp("made") / "world"
    assert make_world(out, TINY, processes=1)
    return out


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """The tiny world's scenes."""
    return [build_scene(TINY, index, name) for index, name in enumerate(scene_names(TINY))]


@pytest.fixture(scope="session")
def tables(devkit: ModuleType, made: Path) -> Any:
    """The tiny world as nuscenes-devkit sees it."""
    return devkit.NuScenes(VERSION, dataroot=str(made), verbose=False)
