"""A training step beside busy neighbours: `python -m benchmarks.busy --demo DIR`, DIR being what `make demo` left.

`cli train-student --profile` of the demo's student, beside 0, 1 and 2 single-threaded processes that never rest: as the
command chooses its threads; with a thread for every core, which wait for each other by spinning (OpenMP's default) or
asleep; and with one thread. The four take turns.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.tables import ratio, show, spread

ROOT = Path(__file__).parent.parent
CORES = str(len(os.sched_getaffinity(0)))
ARMS: dict[str, dict[str, str]] = {
    "as chosen": {},
    "all cores, spinning": {"OMP_NUM_THREADS": CORES},
    "all cores, asleep": {"OMP_NUM_THREADS": CORES, "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Measure and print."""
    options = _options()
    for neighbours in options.neighbours:
        with busy(neighbours):
            turns = [
                {arm: step_seconds(options.demo, added) for arm, added in ARMS.items()} for _ in range(options.turns)
            ]
        times = {arm: [turn[arm] for turn in turns] for arm in ARMS}
        every = times["all cores, spinning"]
        show(
            f"{neighbours} busy neighbours, {CORES} cores",
            ("threads", "s a step", "of all cores, spinning"),
            [(arm, spread(found), ratio(found, every)) for arm, found in times.items()],
        )


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes beside which to measure."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_seconds(demo: Path, added: dict[str, str]) -> float:
    """Median time of a step of the demo's distilled student."""
    config, store = ROOT / "configs" / "demo" / "student.yaml", demo / "teacher.zarr"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "cli",
        "train-student",
        config,
        "--data",
        demo / "world",
        "--cache",
        store,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | added
    done = subprocess.run(
        [*map(str, command), "--profile", "--json"], env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)["step_s"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="what `make demo` left")
    parser.add_argument("--neighbours", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
