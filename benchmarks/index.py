"""The index of tables of nuScenes' full size: making it, opening it, frames, workers, class counts.

    python -m benchmarks.index [--folder FOLDER] [--devkit]

Makes the tables first (2.6 GB of JSON, kept if --folder is given). Every part runs in a process of its own, and times
are those of the processor. With --devkit, frames built from nuScenes-devkit's object too, which needs 11 GB of memory.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import show

VERSION = "v1.0-trainval"
SOME_FRAMES = 2_000
WORKER_FRAMES = 4_000
METHODS = ("fork", "spawn", "forkserver")

TARGETS = {
    "index made, CPU": "60 s",
    "index made, peak memory": "2,000 MB",
    "opened, CPU": "1 s",
    "opened, resident": "200 MB",
    "opened, private": "50 MB",
    "a frame, CPU": "1 ms",
    "class counts, CPU": "1 s",
    "a worker's private growth after 4,000 frames": "20 MB",
    **{f"a {method} worker's first frame": "3 s" for method in METHODS},
}


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / VERSION).is_dir():
            _in_own_process("tables", folder)
        kinds = ("ours", "devkit") if options.devkit else ("ours",)
        measured = {kind: _measure_all(folder, kind) for kind in kinds}
    rows = [
        (name, target, *(measured[kind].get(name, "") for kind in kinds))
        for name, target in TARGETS.items()
        if any(name in measured[kind] for kind in kinds)
    ]
    show("tables of nuScenes' full size", ("", "at most", "this index", "the devkit")[: 2 + len(kinds)], rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the tables; made where it holds none")
    parser.add_argument("--devkit", action="store_true", help="measure nuScenes-devkit's object, too")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_all(folder: Path, kind: str) -> dict[str, str]:
    if kind == "devkit":
        return _in_own_process("devkit", folder)
    found: dict[str, str] = {}
    for part in ("make", "open", "frames", *METHODS):
        found |= _in_own_process(part, folder)
    return found


def _in_own_process(part: str, folder: Path) -> dict[str, str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.index", "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _make_tables(folder: Path) -> dict[str, str]:
    from benchmarks.full_size_tables import make_tables

    make_tables(folder)
    return {}


def _make(folder: Path) -> dict[str, str]:
    from cache.nuscenes.index import index_folder, open_index

    for path in index_folder().glob("*/*"):
        path.unlink()
    for path in index_folder().glob("*/"):
        path.rmdir()
    open_index(folder, VERSION)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "index made, CPU": f"{used.ru_utime + used.ru_stime:.1f} s",
        "index made, peak memory": f"{used.ru_maxrss / 1e3:,.0f} MB",
    }


def _open(folder: Path) -> dict[str, str]:
    """Frames of the training split, and the whole process from its start."""
    from cache.nuscenes.frames import Frames

    frames = Frames(root=folder, version=VERSION, splits=("train",))
    frames[0]
    memory = _memory_mb()
    return {
        "opened, CPU": f"{time.process_time():.2f} s",
        "opened, resident": f"{memory['Rss']:,.0f} MB",
        "opened, private": f"{memory['Private_Clean'] + memory['Private_Dirty']:,.0f} MB",
    }


def _frames(folder: Path) -> dict[str, str]:
    from cache.nuscenes.frames import Frames

    frames = Frames(root=folder, version=VERSION, splits=("train",))
    began = time.process_time()
    frames.label_counts()
    counted = time.process_time()
    return {"class counts, CPU": f"{counted - began:.2f} s", **_build_frames(frames.__getitem__, len(frames))}


def _build_frames(build: Callable[[int], Any], count: int) -> dict[str, str]:
    """The time of frames, and how many bytes a forked worker has for itself once it has built many."""
    step = max(1, count // SOME_FRAMES)
    build(0)
    began = time.process_time()
    for i in range(0, count, step):
        build(i)
    each_ms = 1e3 * (time.process_time() - began) / len(range(0, count, step))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=_grow, args=(build, count, results))
    worker.start()
    grown_mb = results.get()
    worker.join()
    return {
        "a frame, CPU": f"{each_ms:.2f} ms",
        "a worker's private growth after 4,000 frames": f"{grown_mb:,.1f} MB",
    }


def _grow(build: Callable[[int], Any], count: int, results: Any) -> None:
    before = _memory_mb()
    for i in range(WORKER_FRAMES):
        build(i * 7919 % count)  # a prime: frames all over the split
    after = _memory_mb()
    results.put(sum(after[kind] - before[kind] for kind in ("Private_Clean", "Private_Dirty")))


def _start(method: str) -> Callable[[Path], dict[str, str]]:
    def measure(folder: Path) -> dict[str, str]:
        import torch  # noqa: F401  (as in a training, whose workers are forked from a process that has it)

        from cache.nuscenes.frames import Frames
        from cache.nuscenes.loader import Loader

        frames = Frames(root=folder, version=VERSION, splits=("train",))
        began = time.monotonic()
        costs: Any = _Cost(frames)
        loader = Loader(costs, collate_fn=_only, num_workers=1, multiprocessing_context=method)
        cpu_s = next(iter(loader))
        wall_s = time.monotonic() - began
        return {f"a {method} worker's first frame": f"{cpu_s:.2f} s CPU, {wall_s:.2f} s"}

    return measure


class _Cost:
    """A data set of what its worker has used of the processor by its first frame."""

    def __init__(self, frames: Any) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        self.frames[index]
        return time.process_time()


def _only(items: list[float]) -> float:
    return items[0]


def _devkit(folder: Path) -> dict[str, str]:
    from nuscenes.nuscenes import NuScenes

    from tests.factories.devkit import devkit_frame

    nusc = NuScenes(VERSION, str(folder), verbose=False)
    memory, opened_s = _memory_mb(), time.process_time()
    tokens = [sample["token"] for sample in nusc.sample]
    return {
        "opened, CPU": f"{opened_s:.1f} s",
        "opened, resident": f"{memory['Rss']:,.0f} MB",
        "opened, private": f"{memory['Private_Clean'] + memory['Private_Dirty']:,.0f} MB",
        **_build_frames(lambda i: devkit_frame(nusc, tokens[i]), len(tokens)),
    }


def _memory_mb() -> dict[str, float]:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines}


PARTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "tables": _make_tables,
    "make": _make,
    "open": _open,
    "frames": _frames,
    "devkit": _devkit,
    **{method: _start(method) for method in METHODS},
}

if __name__ == "__main__":
    main()
