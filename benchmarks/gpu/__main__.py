"""All that a GPU has to be asked, in one command: `python -m benchmarks.gpu --out FILE`.

Takes less than eight minutes; needs neither network nor data set nor mmdet3d: frames are made up, and the teacher is a
pillar CenterPoint in plain torch with random weights. Parts:

- equality: objective, warp, targets, lift, decoding and NMS beside the CPU's numbers, float32 and bfloat16;
- objective: beside one mse_loss and a compiled formulation, 8 x 384 x 128 x 128, forward and backward;
- step: the full-size student without a teacher, from the store and with the live teacher: time, memory, waits;
- largest batch: of the same in 8, 12 and 24 GiB;
- loading: the store's way to the device, and the whole loader beside the step;
- dump: loading, teacher, encoder and writer, overlapped;
- profile: where a step's time goes, as tables.

Each part is a process with a limit of time of its own: one that fails or takes too long is recorded with its error and
with the figures that it had by then, the others go on, and the exit code is 1. `--device cpu --small` rehearses all of
it. `python -m benchmarks.gpu_tables FILE` then writes the figures into docs/speed.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PARTS = {
    "equality": 60,
    "objective": 60,
    "step": 85,
    "dump": 50,
    "loading": 65,
    "largest batch": 100,
    "profile": 50,
}
"""Seconds that each may take, in the order of the run, beside what those before it left: 470 in all."""
REHEARSAL_FACTOR = 4
"""A CPU may take longer."""


@dataclass(kw_only=True)
class PartResult:
    """The figures of a part, and its error if it failed."""

    seconds: float = 0.0
    error: str | None = None
    machine: dict[str, Any] | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Measure, write the file, and say what failed."""
    options = _options()
    results: dict[str, PartResult] = {}
    spare_s = 0.0
    with tempfile.TemporaryDirectory() as name:
        for part in options.parts.split(","):
            own_s = PARTS[part] * (REHEARSAL_FACTOR if options.device == "cpu" else 1)
            budget_s = options.seconds or own_s + spare_s
            results[part] = run(part, options.device, options.small, Path(name), budget_s)
            spare_s = max(0.0, budget_s - results[part].seconds)
            _write(options, results)
            print(f"{part}: {results[part].error or 'done'}, {results[part].seconds:.0f} s", flush=True)
    sys.exit(any(result.error for result in results.values()))


def run(part: str, device: str, small: bool, folder: Path, budget_s: float) -> PartResult:
    """Run a part in a process of its own, and read what it wrote."""
    figures, log = folder / f"{part}.jsonl", folder / f"{part}.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(part, device, small, folder, figures),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        error = _wait(process, budget_s, log)
    lines = figures.read_text(encoding="utf-8").splitlines() if figures.exists() else []
    found = dict(json.loads(line) for line in lines)
    machine = found.pop("machine", None)
    return PartResult(seconds=time.monotonic() - began, error=error, machine=machine, figures=found)


def command(part: str, device: str, small: bool, folder: Path, figures: Path) -> list[str]:
    """What runs a part."""
    where = ["--folder", str(folder), "--figures", str(figures)]
    small_sizes = ["--small"] if small else []
    return [sys.executable, "-m", "benchmarks.gpu.run_part", part, "--device", device, *where, *small_sizes]


def _wait(process: subprocess.Popen, budget_s: float, log: Path) -> str | None:
    """The error that the process ended with, if any; its loader workers end with it."""
    try:
        code = process.wait(budget_s)
    except subprocess.TimeoutExpired:
        return f"took more than {budget_s:g} s"
    finally:
        _end(process)
    return None if code == 0 else f"exit code {code}: {log.read_text(errors='replace')[-2000:]}"


def _end(process: subprocess.Popen) -> None:
    """Kill the process's session, which loader workers belong to."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _write(options: argparse.Namespace, results: dict[str, PartResult]) -> None:
    machines = [result.machine for result in results.values() if result.machine]
    content = {
        "machine": machines[-1] if machines else None,
        "small": options.small,
        "parts": {name: asdict(result) for name, result in results.items()},
    }
    options.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to rehearse")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, help="for each part, instead of its own limit")
    options = parser.parse_args()
    if unknown := [part for part in options.parts.split(",") if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
