"""What fits on which GPU: `python -m benchmarks.training_memory --data ROOT`, a nuScenes root with v1.0-mini tables.

The memory of DistillBEV's recipe (configs/bevdepth_r50.yaml) in both precisions, with and without activation
checkpointing, as `cli plan-student` counts it, and the largest batch for GPUs of several sizes. The teacher's store is
dumped for it: a full-size pillar CenterPoint with random weights on two frames. With --check, one step of two samples
runs in a process of its own, and what it took is printed beside the estimate.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.cache_io import FirstFrames
from benchmarks.memory import reset_peak
from benchmarks.tables import show
from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.teacher.mmdet3d import load_teacher
from student.config.student import StudentConfig
from student.training.memory import peak_bytes
from student.training.plan import GB, GPUS_GB, TrainingMemory, measure_memory
from student.training.setup import TrainingSetup, set_up_training

CONFIGS = Path(__file__).parent.parent / "configs"
MINI = ["data.version=v1.0-mini", "data.train_split=mini_train", "data.val_split=mini_val", "data.workers=0"]
SETTINGS = [(precision, saving) for precision in ("32-true", "bf16-mixed") for saving in (False, True)]
TWO = ["training.batch_size=2"]


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.store is not None:
        print(_taken(_set_up(options.data, options.store, ["training.precision=32-true"])))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "teacher.zarr"
        _dump(options.data, store)
        memories = {}
        for precision, saving in SETTINGS:
            chosen = [f"training.precision={precision}", f"training.activation_checkpointing={str(saving).lower()}"]
            memories[precision, saving] = measure_memory(_set_up(options.data, store, chosen))
            print(f"counted {precision}, checkpointing {saving}: {memories[precision, saving]}", flush=True)
        _show(memories)
        if options.check:
            _check(options, store, memories["32-true", False])


def _dump(root: Path, store: Path) -> None:
    settings = load_yaml(
        CONFIGS / "centerpoint_pillar02.yaml", DumpConfig, ["version=v1.0-mini", "splits=[mini_train]", "workers=0"]
    )
    frames = _frames(root)
    print(dump(settings, frames, load_teacher(settings.teacher, None), store))


def _frames(root: Path) -> FirstFrames:
    return FirstFrames(root=root, version="v1.0-mini", splits=("mini_train",), first=2)


def _set_up(root: Path, store: Path, chosen: list[str]) -> TrainingSetup:
    config = load_yaml(CONFIGS / "bevdepth_r50.yaml", StudentConfig, [*MINI, *chosen, *TWO])
    return set_up_training(config, root, [store], frames=_frames(root))


def _show(memories: dict[tuple[str, bool], TrainingMemory]) -> None:
    rows = [
        (
            f"{precision}{', checkpointing' if saving else ''}",
            f"{memory.peak(0) / GB:.2f}",
            f"{memory.each_sample / GB:.2f}",
            *(memory.largest_batch(size) or "none" for size in GPUS_GB),
        )
        for (precision, saving), memory in memories.items()
    ]
    columns = ("training", "GB without a sample", "GB each sample", *(f"{size} GB" for size in GPUS_GB))
    show("estimates: the largest batch_size of one GPU", columns, rows)


def _check(options: argparse.Namespace, store: Path, memory: TrainingMemory) -> None:
    arguments = ["--data", options.data, "--threads", options.threads, "--store", store]
    command = [sys.executable, "-m", "benchmarks.training_memory", *map(str, arguments)]
    # Blocks that are freed go back to the system, as a GPU's allocator would give them to the next tensor.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    taken = int(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)
    estimate = memory.peak(2) - memory.weights - memory.optimiser
    print(f"\na step of two samples took {taken / GB:.2f} GB, the estimate is {estimate / GB:.2f} GB", end="")
    print(f" ({taken / estimate:.2f} of it; between 0.8 and 1.2 is promised)")


def _taken(setup: TrainingSetup) -> int:
    """Bytes that a batch of two and its step add to this process."""
    before = reset_peak("cpu")
    batch = setup.dataset.collate([setup.dataset[0], setup.dataset[1]])
    torch.stack(list(setup.module.train().loss_terms(batch).values())).sum().backward()
    return peak_bytes("cpu") - before


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="nuScenes root with v1.0-mini tables")
    parser.add_argument("--check", action="store_true", help="measure a step, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
