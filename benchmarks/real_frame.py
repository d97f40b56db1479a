"""One real nuScenes key frame through the full-size teacher into a store, and one full-size student step from it.

    python -m benchmarks.real_frame DATA [--teacher voxel01]

DATA is a nuScenes root whose v1.0-mini tables hold a frame of mini_train. Prints seconds, megabytes and the codec's
error. The teacher's weights are random (the store says so): this measures cost and loss of bits, not detection.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from cache.teacher.mmdet3d import load_teacher
from demo.pipeline import sets

CONFIGS = Path(__file__).parent.parent / "configs"
MINI = ["version=v1.0-mini", "splits=[mini_train]", "workers=0"]
ONE_STEP = sets(
    "data.version=v1.0-mini",
    "data.train_split=mini_train",
    "data.val_split=mini_val",
    "data.workers=0",
    "training.epochs=1",
    "training.batch_size=1",
    "training.class_balanced=false",
    "training.validate_every=0",
    "detector.image_weights=null",
)
STUDENTS = {
    "pillar02": "bevdepth_r50.yaml",
    "voxel01": "bevdepth_r50_voxel.yaml",
    "voxel0075": "bevdepth_r50_voxel.yaml",
}


def main(data: Path, teacher: str = "pillar02") -> None:
    """Measure on the first frame of mini_train in DATA."""
    student = STUDENTS[teacher]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "teacher.zarr"
        settings = load_yaml(CONFIGS / f"centerpoint_{teacher}.yaml", DumpConfig, MINI)
        frames = Frames(root=data, version=settings.version, splits=settings.splits)
        began = time.perf_counter()
        live = load_teacher(settings.teacher, checkpoint=None)
        typer.echo(f"teacher built in {time.perf_counter() - began:.1f} s")
        report = dump(settings, frames, live, store)
        typer.echo(f"{report}; {report.seconds / report.samples:.2f} s a sample")
        cache = TeacherCache(store)
        raw = sum(layer.channels * layer.grid.shape[0] * layer.grid.shape[1] * 4 for layer in cache.spec.layers)
        typer.echo(f"the same layers as float32: {raw / 1e6:.1f} MB a sample; weights: {cache.spec.teacher.weights}")
        run = Path(folder) / "run"
        command = ["train-student", CONFIGS / student, "--data", data, "--cache", store, "--out", run]
        began = time.perf_counter()
        # A process of its own, as on a machine that trains: its peak memory holds no teacher.
        subprocess.run([sys.executable, "-m", "cli", *map(str, command), *ONE_STEP], check=True)
        summary = json.loads((run / "summary.json").read_text())
        typer.echo(
            f"{summary['steps']} distilled training step in {time.perf_counter() - began:.1f} s with set-up, "
            f"peak memory {summary['peak_memory_mb']:.0f} MB, loss {summary['final_loss']:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
