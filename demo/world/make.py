"""Write a made-up world to disk: all of it or nothing, key frames in parallel."""

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

from cache.config import differing
from cache.errors import DataError
from cache.nuscenes.official import split_scenes
from cache.nuscenes.splits import SPLITS_FILE
from demo.world.config import WorldConfig
from demo.world.scene import Scene, build_scene
from demo.world.sensor_files import Observation, Task, sensor_files, start_worker, write_frame, write_map
from demo.world.tables import build_tables, map_file

VERSION = "v1.0-mini"
RECORD = "world.json"
"""The file in the world's folder that records its configuration."""
GENERATOR = 1
"""Version of the generator, raised when the same parameters give other bytes."""

Progress = Callable[[int, int], None]


def make_world(
    out: Path, world: WorldConfig, *, processes: int | None = None, progress: Progress = lambda done, total: None
) -> bool:
    """Make a world that nuscenes-devkit opens as `v1.0-mini`.

    Args:
        out: A folder that is absent, empty, or holds the same world already.
        processes: Number of worker processes, by default one a processor core; the bytes do not depend on it.
        progress: Called with the number of key frames done and their total.

    Returns:
        Whether it was made now; False if the folder holds it already.

    Raises:
        DataError: the folder holds something else or cannot be written, or a process was killed.
        ConfigError: the objects don't fit into the range.
    """
    out = out.resolve()
    record = {"generator": GENERATOR, "world": world.model_dump(mode="json")}
    if _is_made(out, record):
        return False
    scenes = [build_scene(world, index, name) for index, name in enumerate(scene_names(world))]
    try:
        with _renamed_on_success(out) as folder:
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
    """The names of the world's scenes, those to train on first."""
    return tuple(name for names in splits(world).values() for name in names)


def splits(world: WorldConfig) -> dict[str, tuple[str, ...]]:
    """The scenes to train on, and those to evaluate on, by the names of their splits."""
    if world.names == "mini":
        known, wanted = split_scenes(), {"mini_train": world.train_scenes, "mini_val": world.val_scenes}
        return {split: known[split][:count] for split, count in wanted.items()}
    counts = {"made_train": world.train_scenes, "made_val": world.val_scenes}
    return {split: tuple(f"{split}-{number:04d}" for number in range(count)) for split, count in counts.items()}


def _parts(world: WorldConfig) -> dict[str, tuple[str, ...]]:
    names = splits(world)["made_train"]
    return {part: names[first:last] for part, first, last in world.parts}


def _is_made(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds the world of this record; raise if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = dict(json.loads((out / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            "there is something else where the world should go",
            where=out,
            got=f"no {RECORD} that can be read" if out.is_dir() else "a file",
            expected="no folder, an empty one, or the same world",
            cure="Choose another folder; nothing was overwritten",
        ) from error
    if found == wanted:
        return True
    differences = differing(found, wanted)
    raise DataError(
        "there is another world",
        where=out,
        got=", ".join(f"{path} {other} instead of {value}" for path, other, value in differences),
        cure="Choose another folder, or remove this one; nothing was overwritten",
    )


@contextmanager
def _renamed_on_success(out: Path) -> Iterator[Path]:
    """A temporary folder next to `out`, renamed to it at the end, or removed after an error."""
    folder = out.with_name(f".{out.name}-{uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, world: WorldConfig, scenes: list[Scene], processes: int, progress: Progress) -> None:
    for file in sensor_files(scenes[0], 0, world.past_sweeps):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    tasks = [(scene, frame) for scene in scenes for frame in range(world.key_frames)]
    progress(0, len(tasks))
    done = []
    for observation in _write_frames(folder, world, tasks, processes):
        done.append(observation)
        progress(len(done), len(tasks))
    frames = iter(done)
    tables = build_tables(world, scenes, [list(islice(frames, world.key_frames)) for _ in scenes])
    (folder / VERSION).mkdir()
    for name, records in tables.items():
        (folder / VERSION / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    if world.names == "own":
        named = splits(world) | _parts(world)
        (folder / VERSION / SPLITS_FILE).write_text(json.dumps(named, indent=1), encoding="utf-8")
    (folder / "maps").mkdir()
    for scene in scenes:
        write_map(folder / map_file(scene), scene.road)


def _write_frames(folder: Path, world: WorldConfig, tasks: list[Task], processes: int) -> Iterator[Observation]:
    """Write all key frames; yield their observations in the order of the tasks."""
    make, processes = partial(write_frame, folder, world), min(processes, len(tasks))
    if processes == 1:
        yield from map(make, tasks)
        return
    # A fork would inherit the threads of torch and OpenCV in an undefined state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, start_worker) as pool:
        # Workers inherit the mask: the parent alone handles an interrupt, even while they start.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(make, tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from results
