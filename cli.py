"""The command line: one command for each stage; the work itself is in cache/, student/ and demo/."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cache.errors import OfflineDistillError
from cache.strict import load_yaml

if TYPE_CHECKING:
    from student.evaluate import Metrics

# Everything heavy (torch, mmdet3d, Lightning) is imported by the command that needs it: --help stays quick, and a
# training of the student never sees mmdet3d.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a LiDAR teacher that ran once into a camera student.",
)
console = Console()

Data = Annotated[Path, typer.Option("--data", help="nuScenes root: the folder of samples/, sweeps/ and v1.0-*/.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Lay dotted.key=value over the configuration.")]


@app.command()
def make_world(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist yet.")],
    config: Annotated[Path | None, typer.Option(help="YAML of a WorldConfig; the demo's size without it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Make up a small world in nuScenes' format, with cameras and LiDAR."""
    from demo.world import WorldConfig, make_world

    world = load_yaml(config, WorldConfig, overrides or ())
    with _progress("key frames") as advance:
        made = make_world(out, world, progress=advance)
    console.print(f"{out}: {'made' if made else 'was there already, made by the same configuration; nothing done'}")


@app.command()
def train_teacher(
    config: Annotated[str, typer.Argument(help="mmdet3d configuration: a file, or a model-zoo configuration's name.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and mmengine's logs.")],
    version: Annotated[str, typer.Option(help="nuScenes version.")] = "v1.0-trainval",
    split: Annotated[str, typer.Option(help="nuScenes split.")] = "train",
) -> None:
    """Train a LiDAR teacher with mmdet3d itself."""
    from cache.frames import Frames
    from cache.teacher_training import train_teacher

    frames = Frames(root=data, version=version, splits=(split,))
    console.print(f"checkpoint: {train_teacher(config, frames, out)}")


@app.command()
def dump_teacher(
    config: Annotated[Path, typer.Argument(help="YAML of a DumpConfig.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="The store to make or to continue.")],
    checkpoint: Annotated[Path | None, typer.Option(help="The teacher's weights.")] = None,
    random_weights: Annotated[bool, typer.Option(help="Random weights instead; the store says so.")] = False,
    overrides: Overrides = None,
) -> None:
    """Run the teacher once over the data set and write its features to a store."""
    import torch

    from cache.dump import DumpConfig, dump
    from cache.errors import ConfigError
    from cache.frames import Frames
    from cache.teacher import load_teacher

    settings = load_yaml(config, DumpConfig, overrides or ())
    if (checkpoint is None) != random_weights:
        raise ConfigError(
            "the teacher needs weights", got="both" if checkpoint else "neither",
            expected="--checkpoint or --random-weights", cure="Give exactly one of them",
        )  # fmt: skip
    frames = Frames(root=data, version=settings.version, splits=settings.splits)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_teacher(settings.teacher, checkpoint, device)
    with _progress("samples") as advance:
        report = dump(
            settings,
            frames,
            teacher,
            out,
            progress=lambda state: advance(
                state.done,
                state.total,
                f"{state.samples_per_s:.1f} samples/s, {state.bytes_per_sample / 1e6:.2f} MB/sample",
            ),
        )
    console.print(str(report))


@app.command()
def train_student(
    config: Annotated[Path, typer.Argument(help="YAML of a StudentConfig.")],
    data: Data,
    cache: Annotated[
        list[Path] | None,
        typer.Option(help="A teacher's store; several for several teachers, none if distill is null."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<config's name> without it.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train a camera student, distilling from the store (switch that off with --set distill=null)."""
    from student.config import StudentConfig
    from student.trainer import train_student

    settings = load_yaml(config, StudentConfig, overrides or ())
    summary = train_student(settings, data, cache or [], out or Path("runs") / config.stem, resume)
    console.print(
        f"{summary.steps} steps, {summary.seconds_per_step:.2f} s a step, peak memory {summary.peak_memory_mb:.0f} MB, "
        f"final loss {summary.final_loss:.2f}\ncheckpoint: {summary.checkpoint}"
    )


@app.command()
def evaluate(
    data: Data,
    checkpoint: Annotated[Path | None, typer.Option(help="A student's checkpoint.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A store: evaluate the teacher from its cached maps.")] = None,
    version: Annotated[str | None, typer.Option(help="nuScenes version; the student's or the store's own.")] = None,
    split: Annotated[str | None, typer.Option(help="nuScenes split; the student's or the store's last.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the devkit's files.")] = Path("evaluation"),
) -> None:
    """Official nuScenes detection metrics of a student, or of the teacher from the cache alone."""
    from cache.errors import ConfigError
    from student.evaluate import evaluate_student, evaluate_teacher

    if (checkpoint is None) == (cache is None):
        raise ConfigError(
            "what is to be evaluated?", expected="--checkpoint or --cache", cure="Give exactly one of them"
        )
    with _progress("samples") as advance:
        if checkpoint is not None:
            metrics = evaluate_student(checkpoint, data, version, split, out, progress=advance)
        elif cache is not None:
            metrics = evaluate_teacher(cache, data, version, split, out, progress=advance)
    console.print(_metrics_table(metrics))
    console.print(f"details: {out}")


def _metrics_table(metrics: "Metrics") -> Table:
    """The five errors beside mAP and NDS, then the average precision of each class."""
    table = Table("metric", "value")
    table.add_row("mAP", f"{metrics.mean_ap:.4f}")
    table.add_row("NDS", f"{metrics.nds:.4f}", end_section=True)
    table.add_row("mATE (m)", f"{metrics.translation_error_m:.3f}")
    table.add_row("mASE", f"{metrics.scale_error:.3f}")
    table.add_row("mAOE (rad)", f"{metrics.orientation_error_rad:.3f}")
    table.add_row("mAVE (m/s)", f"{metrics.velocity_error_mps:.3f}")
    table.add_row("mAAE", f"{metrics.attribute_error:.3f}", end_section=True)
    for name, average_precision in metrics.class_ap.items():
        table.add_row(f"AP {name}", f"{average_precision:.3f}")
    return table


@contextmanager
def _progress(unit: str) -> Iterator[Callable[..., None]]:
    """A bar on the terminal; yields what is to be called with (done, total) and perhaps a remark."""
    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(unit, total=None, remark="")
        yield lambda done, total, remark="": bar.update(task, completed=done, total=total, remark=remark)


def main() -> None:
    """Run the command line; an error of ours is one message and exit code 1."""
    try:
        app()
    except OfflineDistillError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}:", end=" ")
        Console(stderr=True, highlight=False, soft_wrap=True).print(str(error), markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
