"""The whole job on a made-up world: world -> teacher -> store -> two students -> metrics -> a report.

Each step is a command of the `cli`, in a process of its own, so that what it costs can be measured.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from cache.errors import ConfigError, OfflineDistillError
from cache.terminal.errors import ending_well
from demo.report import Cost, write_report

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the `cli`; `name` is the key of its cost in the report."""

    name: str
    title: str
    arguments: Sequence[str | Path]


def steps(out: Path) -> list[Step]:
    """The commands of the demo, as a user would type them."""
    world = ("--data", out / "world")
    mini = ("--version", "v1.0-mini", "--split", "mini_train")
    store = ("--cache", out / "teacher.zarr")
    size, teacher = CONFIGS / "world.yaml", CONFIGS / "teacher_model.py"
    dump, student = CONFIGS / "dump.yaml", CONFIGS / "student.yaml"
    alone, distilled = ("--out", out / "student"), ("--out", out / "distilled")
    checkpoint = out / "teacher" / "teacher.pth"
    return [
        Step(name="world", title="make a world", arguments=("make-world", out / "world", "--config", size)),
        Step(
            name="teacher",
            title="train the LiDAR teacher with mmdet3d",
            arguments=("train-teacher", teacher, *world, *mini, "--out", out / "teacher"),
        ),
        Step(
            name="dump",
            title="run the teacher once, into the store",
            arguments=("dump-teacher", dump, *world, "--checkpoint", checkpoint, "--out", out / "teacher.zarr"),
        ),
        Step(
            name="student",
            title="train the camera student alone",
            arguments=("train-student", student, *world, *alone, "--set", "distill=null"),
        ),
        Step(
            name="distilled",
            title="train the same student, distilling from the store",
            arguments=("train-student", student, *world, *store, *distilled),
        ),
        Step(
            name="evaluate teacher",
            title="evaluate the teacher, from the store alone",
            arguments=("evaluate", *world, *store, "--split", "mini_val", "--out", out / "teacher" / "evaluation"),
        ),
        *(
            Step(
                name=f"evaluate {name}",
                title=f"evaluate the {name} student" if name == "distilled" else "evaluate the student",
                arguments=(
                    *("evaluate", *world, "--checkpoint", out / name / "checkpoints" / "last.ckpt"),
                    *("--out", out / name / "evaluation"),
                ),
            )
            for name in ("student", "distilled")
        ),
    ]


def run(step: Step) -> Cost:
    """Run a step to its end; its progress goes to the terminal.

    Raises:
        OfflineDistillError: the command failed (it has said why).
    """
    command = [sys.executable, "-m", "cli", *map(str, step.arguments)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=CONFIGS.parent.parent)
    try:
        # wait4 gives the peak memory of this one child, as the operating system counted it.
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.terminate()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise OfflineDistillError(
            "a step of the demo failed", where=step.title, got=f"exit code {process.returncode}",
            cure=f"Run it by itself: cli {' '.join(map(str, step.arguments))}",
        )  # fmt: skip
    return Cost(seconds=time.perf_counter() - began, peak_memory_mb=usage.ru_maxrss / 1024)


def main(out: Path) -> None:
    """Make the demo in OUT, a folder that an earlier demo made or that does not exist yet."""
    out = out.resolve()
    if out.exists() and not (out / "world").is_dir():
        raise ConfigError("the folder is not a demo's", where=out, cure="Name one that does not exist yet")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.perf_counter()
    todo = steps(out)
    costs = {}
    for number, step in enumerate(todo, start=1):
        typer.secho(f"\n[{number}/{len(todo)}] {step.title}", bold=True)
        costs[step.name] = run(step)
    typer.secho("\nreport", bold=True)
    write_report(out, costs)
    typer.echo((out / "table.md").read_text())
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    typer.echo(f"{minutes} min {seconds} s. Pictures and table: {out}")


if __name__ == "__main__":
    with ending_well():
        typer.run(main)
