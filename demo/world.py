"""A made-up world in nuScenes' format, on disk."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import cv2

from cache.errors import DataError
from cache.strict import Strict
from demo.config import WorldConfig
from demo.files import Observation, write_frame, write_map
from demo.scene import Scene, build_scene, scene_names
from demo.shots import shots_of
from demo.tables import build_tables, map_file

VERSION = "v1.0-mini"
RECORD = "world.json"

Task = tuple[Scene, int]
Progress = Callable[[int, int], None]


class WorldRecord(Strict):
    """What made a world: `world.json` in its folder, written last."""

    generator: int = 1
    world: WorldConfig


def make_world(
    out: Path, world: WorldConfig, *, processes: int | None = None, progress: Progress = lambda done, total: None
) -> bool:
    """Make a world that nuscenes-devkit opens as `v1.0-mini`.

    Args:
        out: A folder that is absent, empty, or holds the same world already.
        processes: All processor cores where it is None; the bytes don't depend on it.
        progress: Called with the number of key frames that are done and that there are.

    Returns:
        Whether it was made now; False where the folder holds it already.

    Raises:
        DataError: the folder holds something else, or cannot be written.
        ConfigError: the objects don't fit into the range.
    """
    out = Path(out)
    if _is_made(out, world):
        return False
    scenes = [build_scene(world, index) for index in range(len(scene_names(world)))]
    try:
        with _renamed_when_done(out) as folder:
            _fill(folder, world, scenes, processes or os.cpu_count() or 1, progress)
    except OSError as error:
        raise DataError(
            "the world cannot be written", where=out, got=error.strerror, cure="Free space, or choose another folder"
        ) from error
    return True


def _is_made(out: Path, world: WorldConfig) -> bool:
    """Whether the folder holds this world; an absent or empty one doesn't, and any other is refused."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()):
        raise DataError(
            "there is something else where the world should go",
            where=out,
            got="a file" if out.is_file() else f"{len(list(out.iterdir()))} entries, without {RECORD}",
            expected="no folder, or an empty one",
            cure="Choose another folder; nothing was overwritten",
        )
    if not (out / RECORD).is_file():
        return False
    wanted, found = WorldRecord(world=world), _read_record(out / RECORD)
    if found != wanted:
        raise DataError(
            "there is another world",
            where=out,
            got=_differences(found, wanted),
            cure="Choose another folder, or remove this one; nothing was overwritten",
        )
    return True


def _read_record(path: Path) -> WorldRecord:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "the record of a world cannot be read", where=path, got=error, cure="Choose another folder"
        ) from error
    return WorldRecord.parse(values, where=path)


def _differences(found: WorldRecord, wanted: WorldRecord) -> str:
    ours, theirs = (record.world.model_dump() | {"generator": record.generator} for record in (wanted, found))
    return ", ".join(f"{key} {theirs[key]} instead of {value}" for key, value in ours.items() if theirs[key] != value)


@contextmanager
def _renamed_when_done(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or disappears."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
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
    (folder / RECORD).write_text(WorldRecord(world=world).model_dump_json(indent=1), encoding="utf-8")


def _observe(folder: Path, world: WorldConfig, tasks: list[Task], processes: int) -> Iterator[Observation]:
    """Write all key frames; results come in the order of the tasks."""
    make, processes = partial(_write_task, folder, world), min(processes, len(tasks))
    if processes == 1:
        yield from map(make, tasks)
        return
    # A fork would inherit the threads of torch and OpenCV in the middle of whatever they do.
    with multiprocessing.get_context("spawn").Pool(processes, _start_worker) as pool:
        yield from pool.imap(make, tasks)


def _write_task(folder: Path, world: WorldConfig, task: Task) -> Observation:
    return write_frame(folder, world, *task)


def _start_worker() -> None:
    """An interrupt is the parent's to handle; the processes share the cores already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
