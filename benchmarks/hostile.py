"""The store's promises in hostile hands: `python -m benchmarks.hostile`.

- kills: dumps in several parts at once are killed (SIGKILL) at random moments and resumed with other numbers of parts;
- damages: content that is whole but not its own (benchmarks/hostile_damages.py): exchanged, foreign, stale, missing.
  Each has to be found by the reader or by `verify`, and to be mended by the repair, or refused with a reason;
- stale writers: a dump is stopped (SIGSTOP), its store removed in several ways, another teacher is dumped and sealed
  there, and the first dump goes on (SIGCONT): nothing of the new store may change;
- hand-made stores (benchmarks/hostile_stores.py): `cli verify` and `cli inspect` have to end within 15 seconds and
  1 GB, without a traceback, a "bug" or a control character on the terminal.

The exit code is 1 if any promise was broken.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.crash import committed, contents
from benchmarks.hostile_damages import Damages, apply_damages
from benchmarks.hostile_stores import HandMade, try_stores
from cache.dumping.run import dump
from cache.store.partition import Part
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherOutput
from tests.factories.stores import SmallFrames, SmallTeacher, dump_in_process, make_config


@dataclass(frozen=True, kw_only=True)
class PartKills:
    """What became of dumps in parts."""

    killed: int
    stores: int
    lost: int
    """Committed samples that were gone or could not be read after a kill."""
    changed: int
    """Committed samples that differ from those of an uninterrupted dump, and finished stores that do."""

    @property
    def broken(self) -> int:
        return self.lost + self.changed


def kill_parts(frames: SmallFrames, folder: Path, kills: int) -> PartKills:
    """Kill dumps of 1 to 4 parts until `kills` processes have died."""
    chance = random.Random(0)
    dump(make_config(), frames, SmallTeacher(), folder / "whole.zarr")
    whole, expected = contents(folder / "whole.zarr"), _samples(folder / "whole.zarr")
    killed, stores, lost, changed = 0, 0, 0, 0
    path, seen = folder / "parts0.zarr", set[str]()
    while killed < kills:
        count = chance.randint(1, 4)
        parts = [dump_in_process(frames, path, part=Part(index=index, count=count)) for index in range(count)]
        time.sleep(chance.uniform(0, 0.5))
        for process in parts:
            if chance.random() < 0.8:
                process.kill()
        for process in parts:
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        lost += len(seen - committed(path))
        seen = committed(path)
        found = _samples(path) if seen else {}
        lost += len(seen - found.keys())
        changed += sum(found[token] != expected[token] for token in found)
        if seen and TeacherCache(path, allow_partial=True).attributes.sealed:
            changed += contents(path) != whole
            shutil.rmtree(path)
            stores += 1
            path, seen = folder / f"parts{stores}.zarr", set()
    return PartKills(killed=killed, stores=stores, lost=lost, changed=changed)


def _samples(path: Path) -> dict[str, bytes]:
    """All features of each committed sample."""
    cache = TeacherCache(path, allow_partial=True)
    batches = {token: cache.read((token,)) for token in cache.tokens}
    return {
        token: b"".join(layer.decode().numpy().tobytes() for layer in batch.features.values())
        for token, batch in batches.items()
    }


@dataclass(frozen=True, kw_only=True)
class StaleWriters:
    """What became of writers that outlived their stores."""

    writers: int
    changed_files: int
    """Of the new stores."""
    said_complete: int

    @property
    def broken(self) -> int:
        return self.changed_files + self.said_complete


class SlowTeacher(SmallTeacher):
    """Takes its time, so that it can be stopped half-way."""

    def forward(self, prepared: list[torch.Tensor]) -> TeacherOutput:
        time.sleep(0.05)
        return super().forward(prepared)


def remove(path: Path) -> None:
    """The whole folder."""
    shutil.rmtree(path)


def move(path: Path) -> None:
    """To another name."""
    path.rename(path.with_name(f"{path.name}.old"))


def empty(path: Path) -> None:
    """All that is in the folder, which itself stays."""
    for inner in path.iterdir():
        shutil.rmtree(inner) if inner.is_dir() else inner.unlink()


def unlink_files(path: Path) -> None:
    """All files; the folders stay."""
    for file in path.rglob("*"):
        if file.is_file():
            file.unlink()


def copied_over(other: Path) -> Callable[[Path], None]:
    """A complete store of another teacher, copied over the one there as `cp -r` does: folders and lock stay."""

    def copy(path: Path) -> None:
        shutil.copytree(other, path, dirs_exist_ok=True)

    return copy


def stale_writers(frames: SmallFrames, folder: Path, writers: int) -> StaleWriters:
    """Stop, replace and continue dumps."""
    chance = random.Random(0)
    dump(make_config(), frames, SmallTeacher(seed=1), folder / "other.zarr")
    ways = [remove, move, empty, unlink_files, copied_over(folder / "other.zarr")]
    changed, complete = 0, 0
    for number in range(writers):
        path = folder / f"stale{number}.zarr"
        process = get_context("fork").Process(target=_quiet_dump, args=(frames, path))
        process.start()
        while not committed(path):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(process.pid or 0, signal.SIGSTOP)
        ways[number % len(ways)](path)
        if not committed(path):
            dump(make_config(), frames, SmallTeacher(seed=1), path)
        before = contents(path)
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join()
        after = contents(path)
        keys = {key for key in before.keys() | after.keys() if not key.endswith(".partial")}
        changed += sum(before.get(key) != after.get(key) for key in keys)
        complete += process.exitcode == 0
    return StaleWriters(writers=writers, changed_files=changed, said_complete=complete)


def _quiet_dump(frames: SmallFrames, path: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    dump(make_config(), frames, SlowTeacher(), path)


def main() -> None:
    """Try everything, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=20)
    parser.add_argument("--parts", default="kills,damages,stale,stores", help="what to try")
    options = parser.parse_args()
    torch.set_num_threads(1)
    broken, chosen = 0, options.parts.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials: dict[str, Callable[[], PartKills | Damages | StaleWriters | HandMade]] = {
            "kills": lambda: kill_parts(SmallFrames(root=folder / "p", count=40), folder, options.kills),
            "damages": lambda: apply_damages(folder / "damages"),
            "stale": lambda: stale_writers(SmallFrames(root=folder / "q", count=24), folder, options.writers),
            "stores": lambda: try_stores(folder / "stores"),
        }
        for title, trial in trials.items():
            if title in chosen:
                began = time.monotonic()
                outcome = trial()
                figures = ", ".join(f"{key} {value}" for key, value in asdict(outcome).items() if value != ())
                print(f"{title}: {figures} ({time.monotonic() - began:.0f} s)", flush=True)
                broken += outcome.broken
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
