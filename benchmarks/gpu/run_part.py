"""One part of `benchmarks.gpu`, in a process of its own: appends a line of JSON to a file for each figure."""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import data, equality, objective, profile, step
from benchmarks.gpu.part import Job
from benchmarks.gpu.world import Sizes

MEASURES = {
    "equality": equality.measure,
    "objective": objective.measure,
    "step": step.measure,
    "largest batch": step.measure_largest,
    "loading": data.measure_loading,
    "dump": data.measure_dump,
    "profile": profile.measure,
}


def machine(device: str) -> dict[str, Any]:
    """What the figures are of."""
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "device GB": torch.cuda.get_device_properties(0).total_memory / 1e9 if on_gpu else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "measured": datetime.now(UTC).date().isoformat(),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=MEASURES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --small rehearses")
    if options.device == "cpu":
        torch.set_num_threads(min(2, torch.get_num_threads()))
    job = Job(device=options.device, sizes=Sizes.of(options.small), folder=options.folder)
    with options.figures.open("a", encoding="utf-8") as file:
        for name, value in chain([("machine", machine(options.device))], MEASURES[options.part](job)):
            file.write(json.dumps([name, value]) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
