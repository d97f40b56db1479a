"""Worth of a teacher: students alone, distilled from a store, and distilled from a teacher that runs in the step.

    python -m benchmarks.worth OUT --jobs 2

makes the study's world, trains its teacher, dumps it, trains and evaluates all students, and prints the tables. OUT
keeps everything, and results.jsonl a line for each training that is done: the same command goes on where an earlier one
stopped.

The teacher is trained on scenes that no student sees. Of the students' scenes one in eight is labelled; a first student
is trained on those, alone, and all others start from it. All students of a detector and seed have the same first
weights and number of steps, and those that see the same frames also the same order and augmentation. The differences
to the student alone and to the live teacher are therefore paired by seed. `--only`, `--seeds` and `--set` run a part,
or a variant with a `--name`. `--teacher` takes another teacher than configs/study/teacher_model.py, and keeps it and
its stores in a folder of OUT; its name is that of a variant:

    python -m benchmarks.worth OUT --only "cached, canonical view" --seeds 1 --name "auto" --set ...
    python -m benchmarks.worth OUT --only "cached, canonical view" --teacher configs/study/teacher_pillar02.py
"""

import json
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.augmentation import cli, run_side_by_side, train_with_live_teacher
from benchmarks.average_precision import Evaluated, mean_average_precision
from benchmarks.worth_results import BANDS, Key, Point, Result, results
from benchmarks.worth_tables import ALONE, LIVE, UNLABELLED_TOO, print_tables
from cache.config import Strict, load_yaml
from cache.geometry.views import ViewsConfig
from cache.nuscenes.frames import Frames
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.training import CHECKPOINT
from demo.pipeline import sets
from student.config.student import StudentConfig
from student.evaluation.metrics import Metrics
from student.training.checkpointing import LAST

CONFIGS = Path(__file__).parent.parent / "configs"
WORLD, TEACHER = CONFIGS / "study" / "world.yaml", CONFIGS / "study" / "teacher_model.py"
DUMP, STUDENT = CONFIGS / "demo" / "dump.yaml", CONFIGS / "demo" / "student.yaml"
TEACHERS, OWN, LABELLED = "made_teacher", "made_own", "made_labelled"
"""Splits of the study's world: the teacher's scenes, the students', and of these those with labels."""
NO_UNLABELLED = "data.unlabelled_split=null"
"""A change of the student's configuration, which has all others of the students' scenes."""
SHARE = 8
"""One of so many of the students' scenes is labelled."""
START_SEED = 0
"""The others' seeds begin with 1."""


class Arm(Strict):
    """A source of the teacher's maps, and frames; stores of the same views are shared.

    split: whose annotations it trains on.
    unlabelled: whether it also trains on the other frames, with the teacher's boxes.
    """

    name: str
    teacher: Literal["none", "cached", "live"]
    views: ViewsConfig = ViewsConfig()
    split: str = LABELLED
    unlabelled: bool = False

    @property
    def store(self) -> str:
        """The name of its store."""
        return f"{len(self.views.names)}-views.zarr"

    @property
    def share(self) -> int:
        """Its frames, in numbers of labelled frames."""
        return SHARE if self.unlabelled or self.split == OWN else 1

    @property
    def changes(self) -> tuple[str, ...]:
        """Of the student's configuration."""
        return f"data.train_split={self.split}", *(() if self.unlabelled else (NO_UNLABELLED,))


ARMS = (
    Arm(name=ALONE, teacher="none"),
    Arm(name="cached, canonical view", teacher="cached"),
    Arm(name="cached, 4 reflections", teacher="cached", views=ViewsConfig(reflections=4)),
    Arm(name=LIVE, teacher="live"),
    Arm(name=f"cached{UNLABELLED_TOO}", teacher="cached", unlabelled=True),
    Arm(name=f"{LIVE}{UNLABELLED_TOO}", teacher="live", unlabelled=True),
    Arm(name="alone, all frames labelled", teacher="none", split=OWN),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One training of one arm, and its metrics.

    teacher: its model's configuration.
    epochs: of the labelled frames; an arm with more frames makes as many steps.
    points: validations, the last at the end.
    """

    out: Path
    teacher: Path
    arm: Arm
    detector: str
    epochs: int
    points: int
    seed: int
    changes: tuple[str, ...]
    variant: str

    @property
    def key(self) -> Key:
        """What makes it another training."""
        return self.variant, self.detector, self.arm.name, self.epochs, self.seed

    def run(self) -> Result:
        """Train and evaluate, in a process that does nothing else."""
        run = self.out / "runs" / ", ".join(filter(None, (*self.key[:3], f"{self.epochs} epochs, seed {self.seed}")))
        shutil.rmtree(run, ignore_errors=True)  # of a training that was stopped
        epochs = self.epochs // self.arm.share
        changes = (
            *common(self.detector),
            *self.arm.changes,
            f"training.epochs={epochs}",
            f"training.seed={self.seed}",
            f"training.validate_every={epochs // self.points}",
            f"training.init_from={start(self.out, self.detector)}",
            *self.changes,
        )
        self._train(run, changes)
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_s = sum(each.ru_utime + each.ru_stime for each in usage)
        return self._result(run, load_yaml(STUDENT, StudentConfig, changes), cpu_s, max(u.ru_maxrss for u in usage))

    def _train(self, run: Path, changes: tuple[str, ...]) -> None:
        world, taught = self.out / "world", self.out / name_of(self.teacher)
        store = taught / self.arm.store
        command = ("train-student", STUDENT, "--data", world, "--out", run)
        match self.arm.teacher:
            case "none":
                cli(*command, *sets(*changes, "distill=null"))
            case "cached":
                cli(*command, "--cache", store, *sets(*changes))
            case "live":
                teacher = load_teacher(str(self.teacher), taught / "teacher" / CHECKPOINT)
                train_with_live_teacher(load_yaml(STUDENT, StudentConfig, changes), world, teacher, store, run)

    def _result(self, run: Path, config: StudentConfig, cpu_s: float, peak_kib: int) -> Result:
        folders = sorted((run / "validation").iterdir())
        curve = [
            Point(epoch=int(folder.name.removeprefix("epoch")), mean_ap=metrics.mean_ap, nds=metrics.nds)
            for folder, metrics in ((folder, _metrics(folder)) for folder in folders)
        ]
        last = _metrics(folders[-1])
        frames = Frames(
            root=self.out / "world", version=config.data.version, splits=(config.data.val_split,), max_sweeps=0
        )
        evaluated = Evaluated.of(folders[-1], frames)
        return Result(
            variant=self.variant,
            detector=self.detector,
            arm=self.arm.name,
            epochs=self.epochs,
            seed=self.seed,
            mean_ap=last.mean_ap,
            nds=last.nds,
            errors=last.errors,
            class_ap=last.class_ap,
            band_ap=tuple(mean_average_precision(evaluated.matches(band)) for band in BANDS),
            curve=tuple(curve),
            cpu_s=cpu_s,
            seconds_per_step=json.loads((run / "summary.json").read_text())["seconds_per_step"],
            peak_memory_mb=peak_kib / 1024,
        )


def main(
    out: Path,
    seeds: int = 4,
    epochs: Annotated[int, typer.Option(help=f"Of the labelled frames, a multiple of {SHARE} times --points.")] = 96,
    start_epochs: Annotated[int, typer.Option(help="Of the student that all others start from.")] = 64,
    points: Annotated[int, typer.Option(help="Of the learning curves.")] = 2,
    jobs: Annotated[int, typer.Option(help="Trainings at a time, each on one core.")] = 2,
    detectors: str = "bevdepth",
    teacher: Annotated[Path, typer.Option(help="Its model's configuration.")] = TEACHER,
    only: Annotated[str, typer.Option(help=f"Arms, with ; between: {'; '.join(arm.name for arm in ARMS)}.")] = "",
    name: Annotated[str, typer.Option(help="Of a variant, with changes by --set.")] = "",
    changes: Annotated[list[str] | None, typer.Option("--set", help="Of the student's configuration.")] = None,
    world: Annotated[list[str] | None, typer.Option(help="Changes of the world, when it is made.")] = None,
) -> None:
    """Make what is not there yet, train what is not done yet, and print the tables of all results."""
    if epochs % (SHARE * points):
        raise typer.BadParameter(f"--epochs must be a multiple of {SHARE} x {points}")
    if bool(name) != bool(changes):
        raise typer.BadParameter("a variant needs both --name and --set")
    out, teacher = out.resolve(), teacher.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    wanted = [part.strip() for part in only.split(";") if part.strip()]
    arms = [arm for arm in ARMS if not wanted or arm.name in wanted]
    if unknown := set(wanted) - {arm.name for arm in arms}:
        raise typer.BadParameter(f"no such arm: {', '.join(unknown)}")
    prepare(out, teacher, arms, tuple(world or ()))
    for each in detectors.split(","):
        train_start(out, each, start_epochs)
    studies = [
        Study(
            out=out,
            teacher=teacher,
            arm=arm,
            detector=each,
            epochs=epochs,
            points=points,
            seed=seed,
            changes=tuple(changes or ()),
            variant=", ".join(filter(None, (name, name_of(teacher)))),
        )
        for seed in range(1, seeds + 1)
        for each in detectors.split(",")
        for arm in arms
    ]
    done = {result.key for result in results(out)}
    todo = [study for study in studies if study.key not in done]
    print(f"{len(todo)} trainings to do", flush=True)
    run_side_by_side(todo, jobs, out)
    print_tables(list(results(out)))


def prepare(out: Path, teacher: Path, arms: list[Arm], world: tuple[str, ...]) -> None:
    """The world, the teacher and the stores; the live teacher's store only describes it."""
    root, taught = out / "world", out / name_of(teacher)
    trained = taught / "teacher"
    if not root.exists():
        cli("make-world", root, "--config", WORLD, *sets(*world))
    if not (trained / "done").exists():
        shutil.rmtree(trained, ignore_errors=True)  # of a training that was stopped
        where = ("--data", root, "--version", "v1.0-mini", "--split", TEACHERS, "--out", trained)
        cli("train-teacher", teacher, *where)
        (trained / "done").touch()
    for arm in arms:
        if arm.teacher != "none":
            changes = sets(f"teacher={teacher}", f"splits=[{OWN}]", f"views={arm.views.model_dump_json()}")
            store = taught / arm.store
            cli("dump-teacher", DUMP, "--data", root, "--checkpoint", trained / CHECKPOINT, "--out", store, *changes)


def name_of(teacher: Path) -> str:
    """Of a teacher's folder in OUT and of its variant; empty for the study's own, which lies in OUT itself."""
    return "" if teacher.samefile(TEACHER) else teacher.stem


def common(detector: str) -> tuple[str, ...]:
    """Changes of the student's configuration that hold for all trainings of a detector."""
    return f"detector.name={detector}", "training.precision=bf16-mixed"


def start(out: Path, detector: str) -> Path:
    """The checkpoint that all students of a detector start from."""
    return out / "start" / detector / LAST


def train_start(out: Path, detector: str, epochs: int) -> None:
    """Train the student that the others start from, unless it is there: alone, on the labelled frames."""
    run = out / "start" / detector
    if (run / "summary.json").exists():
        return
    shutil.rmtree(run, ignore_errors=True)  # of a training that was stopped
    settings = NO_UNLABELLED, f"training.epochs={epochs}", f"training.seed={START_SEED}"
    changes = sets(*common(detector), *settings, "distill=null")
    cli("train-student", STUDENT, "--data", out / "world", "--out", run, *changes)


def _metrics(folder: Path) -> Metrics:
    return Metrics.from_summary(json.loads((folder / "metrics_summary.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    typer.run(main)
