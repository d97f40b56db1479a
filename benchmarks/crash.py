"""A dump that is killed again and again, and a store whose bits flip: `python -m benchmarks.crash`.

Kills: real processes dump a small teacher and are killed (SIGKILL) at random moments; each next one resumes. After
every kill, all samples that were committed before are still there and readable; when the dump is through, every file of
the store equals that of an uninterrupted dump, byte by byte. Then the next store is begun. With --world, processes of
`cli dump-teacher` with the demo's mmdet3d teacher are killed as well, from the moment when the store appears.

Flips: one random bit of one file, all kinds of files in turn, documents included. `verify` has to find it, or all that
a reader returns has to stay the same.

The test suite runs the same with fewer kills and flips, in tests/cache/store/test_crash.py.
"""

import argparse
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from cache.dumping.verify import verify
from cache.errors import StoreError
from cache.store.layout import ROOT
from cache.store.reader import TeacherCache
from cache.store.stored_frames import StoredFrames
from demo.pipeline import sets
from tests.factories.stores import SmallFrames, dump_in_process

PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What became of the dumps: processes killed, and stores that came out whole in spite of it."""

    killed: int
    stores: int
    lost: int
    """Committed samples that were gone, or could not be read, after a kill."""
    different: int
    """Finished stores that differ from an uninterrupted dump."""


Start = Callable[[Path], BaseProcess]
"""Starts a process that dumps to a store, and goes on with what is there."""


def kill_dumps(start: Start, folder: Path, kills: int) -> Kills:
    """Kill dumps at random moments until `kills` have died, and compare with one that was left alone."""
    chance = random.Random(0)
    writing_s = _timed_dump(start, folder / "whole.zarr")
    whole = contents(folder / "whole.zarr")
    killed, stores, lost, different = 0, 0, 0, 0
    path, seen = folder / "killed0.zarr", set[str]()
    while killed < kills:
        before = _folder_times(path)
        process = start(path)
        if chance.random() < 0.8:  # the others are killed before they have begun to write
            _wait_for_change(process, path, before)
        process.join(chance.uniform(0, 0.7 * writing_s))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        now = committed(path)
        lost += len(seen - now) + sum(not _readable(path, token) for token in now - seen)
        seen = now
        if process.exitcode == 0:
            different += contents(path) != whole
            stores += 1
            path, seen = folder / f"killed{stores}.zarr", set()
    start(path).join()
    different += contents(path) != whole
    return Kills(killed=killed, stores=stores + 1, lost=lost, different=different)


def _timed_dump(start: Start, path: Path) -> float:
    """Seconds from the store's first file to the end of the dump."""
    process = start(path)
    _wait_for_change(process, path, {})
    began = time.monotonic()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the dump that nobody disturbed ended with {process.exitcode}")
    return time.monotonic() - began


def _wait_for_change(process: BaseProcess, path: Path, before: dict[Path, int]) -> None:
    """Until the process writes to the store, or ends."""
    while process.is_alive() and _folder_times(path) == before:
        process.join(0.002)


def _folder_times(path: Path) -> dict[Path, int]:
    """When files were last made, renamed or removed in each folder of a store."""
    folders = [folder for folder in (path, *path.rglob("*")) if folder.is_dir()]
    return {folder: folder.stat().st_mtime_ns for folder in folders}


def dump_arguments(world: Path, out: Path) -> list[str]:
    """Of `cli`: a dump of the demo's teacher with random weights, in shards of one sample."""
    settings = ("splits=[all]", "samples_per_shard=1", "batch_size=1", "workers=0")
    options = ["--random-weights", *sets(*settings)]
    return ["dump-teacher", str(PROJECT / "configs/demo/dump.yaml"), "--data", str(world), "--out", str(out), *options]


def cli_dump(world: Path) -> Start:
    """`cli dump-teacher` in a process of its own."""

    def become(path: Path) -> None:
        os.chdir(PROJECT)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        command = [sys.executable, "-m", "cli", *dump_arguments(world, path)]
        os.execve(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1"})

    return partial(_started, become)


def _started(target: Callable[[Path], None], path: Path) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=(path,))
    process.start()
    return process


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def committed(path: Path) -> set[str]:
    """The tokens of a store that may not even have been created."""
    if not (path / ROOT).exists():
        return set()
    return set(TeacherCache(path, allow_partial=True).tokens)


def _readable(path: Path, token: str) -> bool:
    try:
        return TeacherCache(path, allow_partial=True)[token].token == token
    except StoreError:
        return False


@dataclass(frozen=True, kw_only=True)
class Flips:
    """What became of single flipped bits, by kind of file."""

    kinds: dict[str, list[Path]]
    detected: Counter[str]
    harmless: Counter[str]
    """Nothing was noticed, and all that was read was as before."""
    unnoticed: list[Path]
    """Nothing was noticed, and something read differed."""


def flip_bits(path: Path, flips: int) -> Flips:
    """Flip single random bits of the store at `path`, each mended again before the next."""
    chance = random.Random(0)
    expected = read_everything(path)
    result = Flips(kinds=_kinds(path), detected=Counter(), harmless=Counter(), unnoticed=[])
    for number in range(flips):
        kind = sorted(result.kinds)[number % len(result.kinds)]
        file = chance.choice(result.kinds[kind])
        whole = file.read_bytes()
        flip(file, chance.randrange(8 * len(whole)))
        damage = verify(path).damage
        if damage and all(str(path) in str(each.error) for each in damage):
            result.detected[kind] += 1
        elif read_everything(path) == expected:
            result.harmless[kind] += 1
        else:
            result.unnoticed.append(file)
        file.write_bytes(whole)
    return result


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def read_everything(path: Path) -> list[bytes]:
    """All that a reader can be told by a store."""
    cache = TeacherCache(path)
    batch = cache.read(tuple(cache.tokens), head_maps=True)
    tensors = [batch.heatmap, batch.canvas_mask, batch.view_matrix, *batch.head_maps.values()]
    tensors += [t for layer in batch.features.values() for t in (layer.values, layer.scale)]
    tensors += cache.head_weights().values()
    frames = StoredFrames(path=path).read()
    columns = [] if frames is None else [value.tobytes() for value in vars(frames[0].columns).values()]
    return [tensor.numpy().tobytes() for tensor in tensors] + columns + [cache.attributes.model_dump_json().encode()]


def _kinds(path: Path) -> dict[str, list[Path]]:
    """The files of a store that are not empty, by array or document."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size:
            name = file.relative_to(path)
            kinds.setdefault(f"{name.parent}/{re.sub(r'[0-9]+', '*', name.name)}", []).append(file)
    return kinds


def _timed(title: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    print(f"{title}: {work()} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    """Kill, flip, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--world", type=Path, help="a made-up world (`cli make-world`), for `cli dump-teacher`")
    parser.add_argument("--cli-kills", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = SmallFrames(root=folder / "points", count=options.samples)
        _timed("kills", lambda: kill_dumps(partial(dump_in_process, frames), folder, options.kills))
        _timed("flips", lambda: _summary(flip_bits(folder / "whole.zarr", options.flips)))
    if options.world:
        with tempfile.TemporaryDirectory() as name:
            _timed(
                "kills of cli dump-teacher", lambda: kill_dumps(cli_dump(options.world), Path(name), options.cli_kills)
            )


def _summary(flips: Flips) -> str:
    harmless = ", ".join(f"{kind} {count}" for kind, count in flips.harmless.items())
    counts = f"{flips.detected.total()} detected, {flips.harmless.total()} harmless ({harmless})"
    return f"{len(flips.kinds)} kinds of files, {counts}, {len(flips.unnoticed)} unnoticed"


if __name__ == "__main__":
    main()
