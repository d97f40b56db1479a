"""Worth of BEV augmentation to a distilled student, by source of its teacher's maps.

    python -m benchmarks.augmentation DEMO OUT --jobs 2

DEMO is a folder that `make demo` has finished; OUT keeps the stores, the runs and results.jsonl, a line for each
training that is done. The same command goes on where an earlier one stopped, and prints the table at its end.

All students train on the same frames in the same order for the same number of steps; evaluation is without
augmentation. The live teacher runs inside the step on the augmented points, as in the public code; its maps go through
the store's codec, so that the arms differ in the view alone. The last arm measures augmentation without a teacher.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
import typer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from benchmarks.tables import show, spread
from cache.config import Strict, load_yaml
from cache.dumping.config import DumpConfig
from cache.geometry.views import PUBLIC_AUGMENT, ViewsConfig
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.nuscenes.points import load_points
from cache.spec import CacheSpec
from cache.store.codec import encode
from cache.store.reader import TeacherBatch
from cache.teacher.base import Teacher, TeacherInput
from cache.teacher.mmdet3d import load_teacher
from demo.pipeline import sets
from student.config.student import StudentBevAugmentConfig, StudentConfig
from student.data.batch import Batch, join
from student.training.callbacks import Cost
from student.training.checkpointing import LAST
from student.training.setup import make_trainer, set_up_training
from student.training.validation import OfficialMetrics

ROOT = Path(__file__).parent.parent
DUMP, STUDENT = ROOT / "configs/demo/dump.yaml", ROOT / "configs/demo/student.yaml"
ALL_LABELLED = ("data.train_split=made_train", "data.unlabelled_split=null")
"""All of the demo's frames to train on have labels here, as the teacher's have."""
DRAWN = StudentBevAugmentConfig(**PUBLIC_AUGMENT.model_dump())


class Arm(Strict):
    """An augmentation, and a source of the teacher's maps."""

    name: str
    views: ViewsConfig = ViewsConfig()
    augment: StudentBevAugmentConfig = DRAWN
    teacher: Literal["cached", "live", "none"] = "cached"


class Result(Strict):
    """A training that is done."""

    arm: str
    epochs: int
    seed: int
    mean_ap: float
    nds: float
    seconds_per_step: float


def arms(drawn: int) -> list[Arm]:
    """The arms of the comparison."""
    return [
        Arm(name="no augmentation", augment=StudentBevAugmentConfig()),
        Arm(name="canonical view, warped"),
        Arm(name="4 reflections, warped", views=ViewsConfig(reflections=4)),
        Arm(
            name=f"{drawn} drawn views, replayed",
            views=ViewsConfig(canonical=False, drawn=drawn),
            augment=StudentBevAugmentConfig(replay=True),
        ),
        Arm(name="live teacher", teacher="live"),
        Arm(name="no teacher", teacher="none"),
    ]


def main(
    demo: Path,
    out: Path,
    epochs: int = 36,
    seeds: int = 3,
    drawn: Annotated[int, typer.Option(help="Drawn views of the arm that replays them.")] = 12,
    jobs: Annotated[int, typer.Option(help="Trainings at a time; they share the processor's cores.")] = 1,
) -> None:
    """Train, evaluate and compare; what is done already is not done again."""
    demo, out = demo.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    compared = arms(drawn)
    done = {(result.arm, result.epochs, result.seed) for result in results(out)}
    studies = [
        Study(demo=demo, out=out, arm=arm, epochs=epochs, seed=seed)
        for seed in range(seeds)
        for arm in compared
        if (arm.name, epochs, seed) not in done
    ]
    for store, views in {study.store: study.arm.views for study in studies}.items():
        dump(demo, store, views)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    run_side_by_side(studies, jobs, out)
    found = [result for result in results(out) if result.epochs == epochs]
    rows = []
    for arm in compared:
        own = [result for result in found if result.arm == arm.name]
        figures = ([getattr(result, name) for result in own] for name in ("mean_ap", "nds", "seconds_per_step"))
        rows.append((arm.name, *map(spread, figures)))
    show(f"{epochs} epochs, {seeds} seeds: median (least - greatest)", ("", "mAP", "NDS", "s a step"), rows)


def results(out: Path) -> Iterator[Result]:
    """What an earlier command, or this one, has finished."""
    file = out / "results.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        yield Result.parse(json.loads(line), file)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One training of one arm, and its metrics."""

    demo: Path
    out: Path
    arm: Arm
    epochs: int
    seed: int

    @property
    def store(self) -> Path:
        """The store that it reads; arms of the same views share one."""
        return self.out / f"{'-'.join(self.arm.views.names[:4])}-{len(self.arm.views.names)}.zarr"

    def run(self) -> Result:
        """Train and evaluate."""
        world, run = self.demo / "world", self.out / "runs" / f"{self.arm.name}, seed {self.seed}"
        shutil.rmtree(run, ignore_errors=True)  # of a training that was stopped
        changes = (
            *ALL_LABELLED,
            f"training.epochs={self.epochs}",
            f"training.seed={self.seed}",
            f"bev_augment={self.arm.augment.model_dump_json(exclude_defaults=True)}",
        )
        command = ("train-student", STUDENT, "--data", world, "--out", run)
        match self.arm.teacher:
            case "cached":
                cli(*command, "--cache", self.store, *sets(*changes))
            case "live":
                teacher = load_teacher(load_yaml(DUMP, DumpConfig).teacher, self.demo / "teacher" / "teacher.pth")
                train_with_live_teacher(load_yaml(STUDENT, StudentConfig, changes), world, teacher, self.store, run)
            case "none":
                cli(*command, *sets("distill=null", *changes))
        summary = json.loads((run / "summary.json").read_text())
        checkpoint = ("--checkpoint", run / LAST)
        metrics = json.loads(cli("evaluate", "--data", world, *checkpoint, "--out", run / "evaluation", "--json"))
        return Result(
            arm=self.arm.name,
            epochs=self.epochs,
            seed=self.seed,
            mean_ap=metrics["mean_ap"],
            nds=metrics["nds"],
            seconds_per_step=summary["seconds_per_step"],
        )


def dump(demo: Path, store: Path, views: ViewsConfig) -> None:
    """Have the demo's teacher look at the training frames, unless the store is there."""
    changes = sets("splits=[made_train]", f"views={views.model_dump_json()}")
    teacher = ("--checkpoint", demo / "teacher" / "teacher.pth")
    cli("dump-teacher", DUMP, "--data", demo / "world", *teacher, "--out", store, *changes)


class Training(Protocol):
    """A training and its evaluation, which can be run in another process."""

    def run(self) -> Strict:
        """Its result."""


def run_side_by_side(trainings: Sequence[Training], jobs: int, out: Path) -> None:
    """Run each in a process of its own, some at a time; out/results.jsonl gets each result when it is there."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            for running in as_completed([pool.submit(training.run) for training in trainings]):
                with (out / "results.jsonl").open("a", encoding="utf-8") as file:
                    file.write(running.result().model_dump_json() + "\n")
        finally:
            pool.shutdown(cancel_futures=True)


def cli(*arguments: str | Path) -> str:
    """Run a command in a process of its own; its progress goes to the terminal."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A collate function that runs the teacher on each sample's points, moved by the augmentation that was realised."""

    teacher: Teacher
    frames: Frames
    spec: CacheSpec
    layers: tuple[str, ...]

    def __call__(self, samples: list[Batch]) -> Batch:
        batch = join(samples)
        moved = [
            TeacherInput.of_view(frame, load_points(frame, self.teacher.points), matrix)
            for frame, matrix in zip(map(self.frames.__getitem__, batch.tokens), batch.bev_matrix.numpy(), strict=True)
        ]
        output = self.teacher([self.teacher.prepare(frame) for frame in moved])
        maps = TeacherBatch(
            tokens=batch.tokens,
            features={name: encode(output.layers[name], self.spec.layer(name).codec) for name in self.layers},
            heatmap=(output.probability * 255).round().to(torch.uint8),
            canvas_mask=output.canvas_mask.clone(),
            head_maps={},
            view_matrix=batch.bev_matrix,
        )
        return replace(batch, teachers=(maps,), to_teachers=(None,))


def train_with_live_teacher(config: StudentConfig, root: Path, teacher: Teacher, store: Path, out: Path) -> None:
    """Train and validate like `train_student`, but run the teacher in the step; the store only describes it."""
    setup = set_up_training(config, root, [store], out)
    splits = tuple(filter(None, (config.data.train_split, config.data.unlabelled_split)))
    frames = Frames(root=root, version=config.data.version, splits=splits)  # with sweeps
    spec, training, cost = setup.dataset.sources[0].cache.spec, setup.config.training, Cost()
    loader = Loader(
        setup.dataset,
        batch_size=training.batch_size,
        sampler=setup.sampler(),
        collate_fn=LiveTeacher(teacher=teacher, frames=frames, spec=spec, layers=config.teacher_layers()),
    )
    callbacks: list[Callback] = [cost]
    if setup.val_frames is not None:
        callbacks.append(OfficialMetrics(setup.val_frames, out / "validation"))
    trainer = make_trainer(
        training,
        devices=1,
        max_epochs=training.epochs,
        check_val_every_n_epoch=max(1, training.validate_every),
        num_sanity_val_steps=0,
        logger=CSVLogger(out, name="", version="csv"),
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_checkpointing=False,
    )
    trainer.fit(setup.module, loader, setup.validation_loader())
    trainer.save_checkpoint(out / LAST)
    (out / "summary.json").write_text(json.dumps({"seconds_per_step": cost.seconds_per_step}), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
