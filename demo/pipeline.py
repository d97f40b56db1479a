"""The demo: world -> teacher -> store -> two students -> metrics -> report.

Each step is a command of the `cli` in its own process, so that its time and memory can be measured. The students train
side by side, and the evaluations run so, each with its share of the processor's cores.
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
from cache.terminal.errors import exit_codes
from demo.report import Cost, write_report

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
WITHOUT_TEACHER = "distill=null", "data.unlabelled_split=null"
"""Changes of the student's configuration for a training without a teacher, which sees the labelled frames alone."""
FIRST, ALONE = (*WITHOUT_TEACHER, "training.epochs=60"), (*WITHOUT_TEACHER, "training.epochs=48")
"""Of the student that both others start from, and of that without a teacher: 48 epochs of the labelled frames are as
many steps as six of all frames."""


@dataclass(frozen=True)
class Step:
    """One command of the `cli`; `name` is the key of its cost in the report.

    beside: whether it runs beside the step before it.
    """

    name: str
    title: str
    arguments: Sequence[str | Path]
    beside: bool = False


def steps(out: Path) -> list[Step]:
    """The commands of the demo, as a user would type them."""
    world, store, weights = ("--data", out / "world"), out / "teacher.zarr", out / "teacher" / "teacher.pth"
    made = ("make-world", out / "world", "--config", CONFIGS / "world.yaml")
    scenes = ("--version", "v1.0-mini", "--split", "made_teacher")
    teacher = ("train-teacher", CONFIGS / "teacher_model.py", *world, *scenes)
    dump = ("dump-teacher", CONFIGS / "dump.yaml", *world, "--checkpoint", weights, "--out", store)
    train: tuple[str | Path, ...] = ("train-student", CONFIGS / "student.yaml", *world, *sets(*half_precision()))
    further = (*train, *sets(f"training.init_from={checkpoint(out / 'first')}"))
    first = (*train, "--out", out / "first", *sets(*FIRST))
    alone = (*further, "--out", out / "student", *sets(*ALONE))
    distilled = (*further, "--cache", store, "--out", out / "distilled")
    from_store = ("evaluate", *world, "--cache", store, "--split", "made_val", "--out", out / "teacher" / "evaluation")

    def evaluate(run: Path) -> Sequence[str | Path]:
        return ("evaluate", *world, "--checkpoint", checkpoint(run), "--out", run / "evaluation")

    return [
        Step("world", "make a world", made),
        Step("teacher", "train the LiDAR teacher with mmdet3d", (*teacher, "--out", out / "teacher")),
        Step("first", "train a first camera student on the labelled frames", first, beside=True),
        Step("dump", "run the teacher once, into the store", dump),
        Step("student", "train that student further, alone", alone),
        Step("distilled", "train it further, with the teacher's store of unlabelled frames", distilled, beside=True),
        Step("evaluate teacher", "evaluate the teacher, from the store alone", from_store),
        Step("evaluate student", "evaluate the student alone", evaluate(out / "student"), beside=True),
        Step("evaluate distilled", "evaluate the distilled student", evaluate(out / "distilled"), beside=True),
    ]


def checkpoint(run: Path) -> Path:
    """What a training leaves."""
    return run / "checkpoints" / "last.ckpt"


def sets(*changes: str) -> list[str]:
    """Options of a command for changes of its configuration."""
    return [part for change in changes for part in ("--set", change)]


def half_precision() -> tuple[str, ...]:
    """Changes of the students' configuration for a processor that computes in bfloat16; others would emulate it."""
    has = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return ("training.precision=bf16-mixed",) if has else ()


def groups(todo: Sequence[Step]) -> list[list[Step]]:
    """The steps that run side by side, in their order."""
    found: list[list[Step]] = []
    for step in todo:
        if step.beside:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def run(group: Sequence[Step]) -> dict[str, Cost]:
    """Run steps side by side, and return what each cost; their output goes to the terminal.

    Raises:
        OfflineDistillError: a command failed; its own message is on the terminal.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // len(group))
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if len(group) > 1 else {})
    commands = [[sys.executable, "-m", "cli", *map(str, step.arguments)] for step in group]
    began = time.perf_counter()
    processes = [subprocess.Popen(command, cwd=CONFIGS.parent.parent, env=environment) for command in commands]
    running = {process.pid: (process, step) for process, step in zip(processes, group, strict=True)}
    costs = {}
    try:
        for _ in group:
            # wait4 returns the peak memory of this child alone.
            pid, status, usage = os.wait4(-1, 0)
            process, step = running.pop(pid)
            process.returncode = os.waitstatus_to_exitcode(status)
            if code := process.returncode:
                cure = f"Run it by itself: cli {' '.join(map(str, step.arguments))}"
                raise OfflineDistillError(
                    "a step of the demo failed", where=step.title, got=f"exit code {code}", cure=cure
                )
            costs[step.name] = Cost(seconds=time.perf_counter() - began, peak_memory_mb=usage.ru_maxrss / 1024)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.wait()
    return costs


def main(out: Path) -> None:
    """Run the demo in OUT, which must not exist yet or be an earlier demo's folder."""
    out = out.resolve()
    if out.exists() and not (out / "world").is_dir():
        raise ConfigError("the folder is not a demo's", where=out, cure="Name one that does not exist yet")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.perf_counter()
    todo = groups(steps(out))
    costs: dict[str, Cost] = {}
    for number, group in enumerate(todo, start=1):
        typer.secho(f"\n[{number}/{len(todo)}] {'; '.join(step.title for step in group)}", bold=True)
        costs |= run(group)
    typer.secho("\nreport", bold=True)
    write_report(out, costs)
    typer.echo((out / "table.md").read_text())
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    typer.echo(f"{minutes} min {seconds} s. Pictures and table: {out}")


if __name__ == "__main__":
    with exit_codes():
        typer.run(main)
