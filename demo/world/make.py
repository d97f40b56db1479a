"""A made-up world in nuScenes' format, on disk."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from nuscenes.utils.splits import mini_train, mini_val

from cache.config import differing
from cache.errors import DataError
from demo.world.config import WorldConfig
from demo.world.scene import Scene, build_scene
from demo.world.sensor_files import Observation, Task, start_worker, write_frame, write_map
from demo.world.shots import shots_of
from demo.world.tables import build_tables, map_file

VERSION = "v1.0-mini"
RECORD = "world.json"
"""In the world's folder: what made it."""
GENERATOR = 1
"""To be raised when the same parameters give other bytes."""

Progress = Callable[[int, int], None]


def make_world(
    out: Path, world: WorldConfig, *, processes: int | None = None, progress: Progress = lambda done, total: None
) -> bool:
    """Make a world that nuscenes-devkit opens as `v1.0-mini`.

    Args:
        out: A folder that is absent, empty, or holds the same world already.
        processes: As many as there are processor cores where it is None; the bytes don't depend on it.
        progress: Called with the number of key frames that are done and that there are.

    Returns:
        Whether it was made now; False where the folder holds it already.

    Raises:
        DataError: the folder holds something else or cannot be written, or a process was killed.
        ConfigError: the objects don't fit into the range.
    """
    out = Path(out).resolve()
    record = {"generator": GENERATOR, "world": world.model_dump(mode="json")}
    if _is_made(out, record):
        return False
    scenes = [build_scene(world, index, name) for index, name in enumerate(scene_names(world))]
    try:
        with _renamed_when_done(out) as folder:
            _fill(folder, world, scenes, processes or os.cpu_count() or 1, progress)
            (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        cure = "Free space, or choose another folder"
        raise DataError("the world cannot be written", where=out, got=error.strerror, cure=cure) from error
    except BrokenProcessPool as error:
        cure = "Make it again with fewer processes; each takes up to half a gigabyte"
        raise DataError("a process that made the world was killed", where=out, cure=cure) from error
    return True


def scene_names(world: WorldConfig) -> tuple[str, ...]:
    """The names of the world's scenes, those of mini_train first."""
    return (*mini_train[: world.train_scenes], *mini_val[: world.val_scenes])


def _is_made(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds the world of this record; an absent or empty one doesn't, and any other is refused."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _read_record(out)
    if found != wanted:
        raise DataError(
            "there is another world",
            where=out,
            got=", ".join(f"{path} {other} instead of {value}" for path, other, value in differing(found, wanted)),
            cure="Choose another folder, or remove this one; nothing was overwritten",
        )
    return True


def _read_record(out: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((out / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            "there is something else where the world should go",
            where=out,
            got=f"no {RECORD} that can be read" if out.is_dir() else "a file",
            expected="no folder, an empty one, or the same world",
            cure="Choose another folder; nothing was overwritten",
        ) from error


@contextmanager
def _renamed_when_done(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or disappears."""
    folder = out.with_name(f".{out.name}-{uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, world: WorldConfig, scenes: list[Scene], processes: int, progress: Progress) -> None:
    for shot in shots_of(scenes[0], 0, world.past_sweeps):
        (folder / shot.file).parent.mkdir(parents=True, exist_ok=True)
    tasks = [(scene, frame) for scene in scenes for frame in range(world.key_frames)]
    progress(0, len(tasks))
    done = []
    for observation in _observe(folder, world, tasks, processes):
        done.append(observation)
        progress(len(done), len(tasks))
    frames = iter(done)
    tables = build_tables(world, scenes, [list(islice(frames, world.key_frames)) for _ in scenes])
    (folder / VERSION).mkdir()
    for name, records in tables.items():
        (folder / VERSION / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (folder / "maps").mkdir()
    for scene in scenes:
        write_map(folder / map_file(scene), scene.road)


def _observe(folder: Path, world: WorldConfig, tasks: list[Task], processes: int) -> Iterator[Observation]:
    """Write all key frames; results come in the order of the tasks."""
    make, processes = partial(write_frame, folder, world), min(processes, len(tasks))
    if processes == 1:
        yield from map(make, tasks)
        return
    # A fork would inherit the threads of torch and OpenCV in the middle of whatever they do.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, start_worker) as pool:
        # Workers inherit the mask: an interrupt is the parent's to handle, even while they still start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(make, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from results
