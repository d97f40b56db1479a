"""A dump that is killed again and again, and a store whose bits flip: `python -m benchmarks.crash`.

Kills: real processes dump a small teacher and are killed (SIGKILL) at random moments; each next one resumes. After
every kill, all samples that were committed before are still there and readable; when the dump is through, every file of
the store equals that of an uninterrupted dump, byte by byte. Then the next store is begun.

Flips: one random bit of one file, all kinds of files in turn, documents included. `cache.verify` has to find it, or all
that a reader is told has to stay the same.

The test suite runs the same with fewer kills and flips, with tests/cache/conftest.py as `kit`.
"""

import argparse
import importlib.util
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from cache.dump import dump
from cache.errors import StoreError
from cache.frames import Frames
from cache.reader import TeacherCache
from cache.verify import verify

KIT = Path(__file__).parent.parent / "tests" / "cache" / "conftest.py"


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What became of the dumps: processes killed, and stores that came out whole in spite of it."""

    killed: int
    stores: int
    lost: int
    """Committed samples that were gone, or could not be read, after a kill."""
    different: int
    """Finished stores that differ from an uninterrupted dump."""


def kill_dumps(kit: ModuleType, frames: Frames, folder: Path, whole: dict[str, bytes], kills: int) -> Kills:
    """Kill dumps of `frames` at random moments until `kills` have died; `whole` is the uninterrupted dump's content."""
    chance = random.Random(0)
    began = time.monotonic()
    kit.dump_in_process(frames, folder / "timed.zarr").join()
    seconds = time.monotonic() - began
    killed, stores, lost, different = 0, 0, 0, 0
    path, seen = folder / "killed0.zarr", set[str]()
    while killed < kills:
        process = kit.dump_in_process(frames, path)
        process.join(chance.uniform(0, 0.7 * seconds))
        process.kill()
        process.join()
        killed += process.exitcode < 0
        now = committed(path)
        lost += len(seen - now) + sum(not _readable(path, token) for token in now - seen)
        seen = now
        if process.exitcode == 0:
            different += kit.contents(path) != whole
            stores += 1
            path, seen = folder / f"killed{stores}.zarr", set()
    dump(kit.make_config(), frames, kit.SmallTeacher(), path)
    different += kit.contents(path) != whole
    return Kills(killed=killed, stores=stores + 1, lost=lost, different=different)


def committed(path: Path) -> set[str]:
    """The tokens of a store that may not even have been created."""
    try:
        return set(TeacherCache(path, allow_partial=True).tokens)
    except StoreError:
        if (path / "zarr.json").exists():
            raise
        return set()


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
    return [tensor.numpy().tobytes() for tensor in tensors] + [cache.attributes.model_dump_json().encode()]


def _kinds(path: Path) -> dict[str, list[Path]]:
    """The files of a store that are not empty, by array or document."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size:
            name = file.relative_to(path)
            kinds.setdefault(f"{name.parent}/{re.sub(r'[0-9]+', '*', name.name)}", []).append(file)
    return kinds


def load_kit() -> ModuleType:
    """The small teacher and its frames, from the tests."""
    spec = importlib.util.spec_from_file_location("kit", KIT)
    assert spec is not None
    assert spec.loader is not None
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    return kit


def _timed(title: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    print(f"{title}: {work()} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    """Kill, flip, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kit = load_kit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = kit.SmallFrames(root=folder / "points", count=options.samples)
        store = folder / "whole.zarr"
        kit.dump_in_process(frames, store).join()
        _timed("kills", lambda: kill_dumps(kit, frames, folder, kit.contents(store), options.kills))
        _timed("flips", lambda: _summary(flip_bits(shutil.copytree(store, folder / "flipped.zarr"), options.flips)))


def _summary(flips: Flips) -> str:
    harmless = ", ".join(f"{kind} {count}" for kind, count in flips.harmless.items())
    counts = f"{flips.detected.total()} detected, {flips.harmless.total()} harmless ({harmless})"
    return f"{len(flips.kinds)} kinds of files, {counts}, {len(flips.unnoticed)} unnoticed"


if __name__ == "__main__":
    main()
