"""The command line: one command for each stage; the work itself is in cache/, student/ and demo/."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cache.config import load_yaml
from cache.errors import OfflineDistillWarning
from cache.terminal.console import answering, examples, progress, say
from cache.terminal.errors import ending_well
from cache.versions import installed_versions

if TYPE_CHECKING:
    from cache.dumping.run import DumpConfig, DumpProgress
    from cache.nuscenes.frames import Frames
    from cache.teacher.base import Teacher

# Everything heavy (torch, mmdet3d, Lightning) is imported by the command that needs it: --help stays quick, and a
# training of the student never sees mmdet3d.

TEACHER = "configs/centerpoint_pillar02.yaml --data nuscenes --checkpoint teacher.pth"
"""As the examples name it."""


class Commands(TyperGroup):
    """The commands, each of which ends with one message and one of the documented exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with ending_well(ctx.params["debug"]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 fine; 1 an error, or damage found; 2 wrong usage; 130 interrupted; 143 terminated.",
)

Data = Annotated[Path, typer.Option("--data", help="nuScenes root: the folder of samples/, sweeps/ and v1.0-*/.")]
DumpFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML of a DumpConfig.")]
Checkpoint = Annotated[Path | None, typer.Option(help="The teacher's weights.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Random weights instead; the store says so.")]
StudentFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML of a StudentConfig.")]
Caches = Annotated[
    list[Path] | None,
    typer.Option("--cache", help="A teacher's store; several for several teachers, none without distill."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Lay dotted.key=value over the configuration.")]
Depth = Annotated[bool, typer.Option("--depth", help="Keep the depth in the cameras too: --set depth=true in short.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object, and nothing else, on stdout.")]


def _versions(wanted: bool) -> None:
    if wanted:
        for name, version in installed_versions().items():
            say(f"{name} {version or '(not installed)'}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="Print the versions that matter.")
    ] = False,
) -> None:
    """Distil a LiDAR teacher that ran once into a camera student."""


@app.command(epilog=examples("cli make-world world --config configs/demo/world.yaml"))
def make_world(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist yet.")],
    config: Annotated[Path | None, typer.Option(help="YAML of a WorldConfig; the demo's size without it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Make up a small world in nuScenes' format, with cameras and LiDAR."""
    from demo.world.config import WorldConfig
    from demo.world.make import make_world

    world = load_yaml(config, WorldConfig, overrides or ())
    with progress("key frames") as advance:
        made = make_world(out, world, progress=advance)
    say(f"{out}: {'made' if made else 'was there already, made by the same configuration; nothing done'}")


@app.command(
    epilog=examples(
        "cli train-teacher configs/demo/teacher_model.py --data world --version v1.0-mini --split mini_train --out run"
    )
)
def train_teacher(
    config: Annotated[str, typer.Argument(help="mmdet3d configuration: a file, or a model-zoo configuration's name.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and mmengine's logs.")],
    version: Annotated[str, typer.Option(help="nuScenes version.")] = "v1.0-trainval",
    split: Annotated[str, typer.Option(help="nuScenes split.")] = "train",
) -> None:
    """Train a LiDAR teacher with mmdet3d itself."""
    from cache.nuscenes.frames import Frames
    from cache.teacher.training import train_teacher

    frames = Frames(root=data, version=version, splits=(split,))
    say(f"checkpoint: {train_teacher(config, frames, out)}")


@app.command(epilog=examples(f"cli plan {TEACHER} --out teacher.zarr"))
def plan(
    config: DumpFile,
    data: Data,
    out: Annotated[Path, typer.Option(help="Where the store would be.")],
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    probes: Annotated[int, typer.Option(min=1, help="Frames to try.")] = 4,
    depth: Depth = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """What a dump would take, measured on a handful of frames, before anything is written."""
    from cache.dumping.estimate import plan
    from cache.visualization.summary import plan_tables

    with answering(json) as answer:
        settings, frames, teacher = _stage_one(config, data, checkpoint, random_weights, _with_depth(overrides, depth))
        costs = plan(settings, frames, teacher, out, probes)
        answer(costs, *plan_tables(costs))
    costs.require_room()


@app.command(
    epilog=examples(
        f"cli dump-teacher {TEACHER} --out teacher.zarr",
        "cli dump-teacher configs/demo/dump.yaml --data world --random-weights --out teacher.zarr --part 0/4",
    )
)
def dump_teacher(
    config: DumpFile,
    data: Data,
    out: Annotated[Path, typer.Option(help="The store to make or to continue.")],
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    part: Annotated[
        str | None, typer.Option(help="i/n: write only this part; torchrun's ranks need no option.")
    ] = None,
    depth: Depth = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Run the teacher once over the data set and write its features to a store."""
    from cache.dumping.run import dump
    from cache.store.partition import Part

    chosen = Part.of_rank(os.environ) if part is None else Part.parse(part)
    with answering(json) as answer:
        settings, frames, teacher = _stage_one(config, data, checkpoint, random_weights, _with_depth(overrides, depth))
        with _dump_progress() as advance:
            answer(dump(settings, frames, teacher, out, advance, chosen))


@app.command(epilog=examples("cli inspect teacher.zarr", "cli inspect teacher.zarr --html report.html"))
def inspect(
    store: Annotated[Path, typer.Argument(help="A store; one that is not complete yet will do.")],
    token: Annotated[str | None, typer.Argument(help="A sample, to be drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture's file; TOKEN.png without it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser: one file, no network.")] = None,
    view: Annotated[str | None, typer.Option(help="Which view to draw; the first without it.")] = None,
    json: Json = False,
) -> None:
    """What a store holds: identity, layers, sizes, error report, statistics; with a token, its picture."""
    from cache.store.reader import TeacherCache
    from cache.visualization.pictures import plot
    from cache.visualization.report import write_html
    from cache.visualization.summary import statistics_table, store_tables, summarise

    with answering(json) as answer:
        cache = TeacherCache(store, allow_partial=True)
        if html is not None:
            with progress("samples") as advance:
                write_html(cache, html, progress=advance)
            answer({"page": html}, html)
        elif token is not None:
            picture = out or Path(f"{token}.png")
            plot(cache[token], 0 if view is None else cache.view(view)).savefig(picture, dpi=110)
            answer({"token": token, "picture": picture}, picture)
        else:
            summary = summarise(cache)
            answer(summary, *store_tables(cache), statistics_table(summary.statistics))


@app.command(
    epilog=examples(
        "cli verify teacher.zarr --quick",
        f"cli verify teacher.zarr --repair {TEACHER}",
    )
)
def verify(
    store: Annotated[Path, typer.Argument(help="The store to look through.")],
    full: Annotated[bool, typer.Option("--full/--quick", help="Every byte, or documents, sizes and indexes.")] = True,
    repair: Annotated[
        Path | None, typer.Option(help="YAML of the store's DumpConfig: run its teacher again on damaged shards.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="nuScenes root, for --repair.")] = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Look for damage in a store; exit code 1 where there is some left."""
    from cache.dumping.verify import repair as mend
    from cache.dumping.verify import verify
    from cache.errors import ConfigError

    with answering(json) as answer:
        if repair is None:
            with progress("shards") as advance:
                report = verify(store, full, advance)
        else:
            if data is None:
                raise ConfigError("a repair runs the teacher again", expected="--data", cure="Give the nuScenes root")
            settings, frames, teacher = _stage_one(repair, data, checkpoint, random_weights, overrides)
            with _dump_progress() as advance:
                report = mend(store, settings, frames, teacher, advance)
        answer(report)
    if report.damage:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --out runs/distilled",
        "cli train-student configs/bevdepth_r50.yaml --data nuscenes --set distill=null --out runs/alone",
        "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --resume",
        "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --profile",
    )
)
def train_student(
    config: StudentFile,
    data: Data,
    cache: Caches = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<config's name> without it.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's last checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time of some steps goes; nothing is written.")
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train a camera student, distilling from the store (switch that off with --set distill=null)."""
    from student.config.student import StudentConfig
    from student.training.profile import profile_student
    from student.training.trainer import train_student
    from student.visualization.training import profile_advice, profile_table

    settings = load_yaml(config, StudentConfig, overrides or ())
    # With training.devices=N this command runs N times over; the first of them speaks.
    bar = progress("steps") if os.environ.get("LOCAL_RANK", "0") == "0" else nullcontext(lambda *_: None)
    with answering(json) as answer, bar as advance:
        if profile:
            times = profile_student(settings, data, cache or [], progress=advance)
            answer(times, profile_table(times), profile_advice(times))
            return
        run = out or Path("runs") / config.stem
        summary = train_student(settings, data, cache or [], run, resume, progress=advance)
    if summary is not None:
        answer(summary)


@app.command(
    epilog=examples(
        "cli plan-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr",
        "cli plan-student configs/bevdepth_r50.yaml --data nuscenes --set distill=null --set training.batch_size=4",
    )
)
def plan_student(
    config: StudentFile,
    data: Data,
    cache: Caches = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """What a training would take: memory, steps, bytes to read; measured on two frames, before anything is written."""
    from student.config.student import StudentConfig
    from student.training.plan import plan_training
    from student.visualization.training import plan_tables

    with answering(json) as answer:
        costs = plan_training(load_yaml(config, StudentConfig, overrides or ()), data, cache or [])
        answer(costs, *plan_tables(costs))


@app.command(
    epilog=examples(
        "cli import-checkpoint configs/bevdepth4d_r50.yaml bevdepth4d-r50.pth --out bevdepth4d-r50.ckpt",
        "cli import-checkpoint configs/bevdepth_r50.yaml resnet50.pth --out start.ckpt --allow-missing 'head.*'",
    )
)
def import_checkpoint(
    config: Annotated[Path, typer.Argument(help="YAML of the StudentConfig whose detector takes the weights.")],
    checkpoint: Annotated[Path, typer.Argument(help="A public BEVDet or BEVDepth checkpoint, or torchvision weights.")],
    out: Annotated[Path, typer.Option(help="The student's checkpoint to make; must not exist yet.")],
    allow_missing: Annotated[
        list[str] | None, typer.Option(help="Tensors that may keep their initial values, as in 'lift.*'.")
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Turn a public checkpoint into a student's, for `evaluate` and training.init_from; every tensor is reported."""
    from student.config.student import StudentConfig
    from student.converters.convert import plan_import
    from student.visualization.tables import import_table

    with answering(json) as answer:
        plan = plan_import(checkpoint, load_yaml(config, StudentConfig, overrides or ()))
        answer(plan.report, import_table(plan.report), plan.report)
        plan.write(out, allow_missing or ())


@app.command(
    epilog=examples(
        "cli evaluate --data nuscenes --checkpoint runs/distilled/checkpoints/last.ckpt",
        "cli evaluate --data nuscenes --cache teacher.zarr --json",
    )
)
def evaluate(
    data: Data,
    checkpoint: Annotated[Path | None, typer.Option(help="A student's checkpoint.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A store: evaluate the teacher from its cached maps.")] = None,
    version: Annotated[str | None, typer.Option(help="nuScenes version; the student's or the store's own.")] = None,
    split: Annotated[str | None, typer.Option(help="nuScenes split; the student's or the store's last.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the devkit's files.")] = Path("evaluation"),
    plots: Annotated[bool, typer.Option("--plots", help="Draw curves, errors and boxes into OUT/plots.")] = False,
    json: Json = False,
) -> None:
    """Official nuScenes detection metrics of a student, or of the teacher from the cache alone."""
    from cache.errors import ConfigError
    from cache.nuscenes.frames import Frames
    from cache.store.reader import TeacherCache
    from student.evaluation.evaluate import evaluate, student_detections
    from student.evaluation.teacher_boxes import teacher_detections
    from student.models.checkpoint import load_student
    from student.visualization.plots import save_evaluation_plots
    from student.visualization.tables import metrics_table

    if (checkpoint is None) == (cache is None):
        raise ConfigError(
            "what is to be evaluated?", expected="--checkpoint or --cache", cure="Give exactly one of them"
        )
    with answering(json) as answer, progress("samples") as advance:
        if checkpoint is not None:
            detector, config = load_student(checkpoint)
            version, split = version or config.data.version, split or config.data.val_split
            frames = Frames(root=data, version=version, splits=(split,), max_sweeps=0)
            metrics = evaluate(student_detections(detector, config, frames), frames, out, "camera", advance)
        elif cache is not None:
            teacher = TeacherCache(cache)
            version, split = version or teacher.spec.data.version, split or teacher.spec.data.splits[-1]
            frames = Frames(root=data, version=version, splits=(split,), max_sweeps=0)
            metrics = evaluate(teacher_detections(teacher, frames.tokens), frames, out, "lidar", advance)
        if plots:
            save_evaluation_plots(out, frames)
    answer(metrics, metrics_table(metrics), f"details: {out}")
    for remark in metrics.remarks:
        warnings.warn(remark, OfflineDistillWarning, stacklevel=1)


def _with_depth(overrides: list[str] | None, depth: bool) -> list[str]:
    return [*(overrides or []), *(["depth=true"] if depth else [])]


@app.command(
    epilog=examples(
        "cli fidelity teacher.zarr --teacher configs/demo/teacher_model.py --checkpoint teacher.pth --data world"
    )
)
def fidelity(
    store: Annotated[Path, typer.Argument(help="A store; of its views, the choices that they allow are compared.")],
    teacher: Annotated[str, typer.Option(help="The teacher's mmdet3d configuration, as in its DumpConfig.")],
    data: Data,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    split: Annotated[str | None, typer.Option(help="nuScenes split; the store's last.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="BEV matrices for each frame and choice.")] = 2,
    seed: Annotated[int, typer.Option(help="Of these matrices.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, JSON, picture and the devkit's files.")] = Path(
        "fidelity"
    ),
    json: Json = False,
) -> None:
    """How near the cached teacher, warped, is to the live one on augmented points."""
    from cache.nuscenes.frames import Frames
    from cache.store.reader import TeacherCache
    from student.fidelity.measure import FidelityStudy
    from student.fidelity.report import tables, write

    with answering(json) as answer:
        cache = TeacherCache(store)
        identity = cache.spec.data
        frames = Frames(root=data, version=identity.version, splits=(split or identity.splits[-1],))
        study = FidelityStudy(cache, _live_teacher(teacher, checkpoint, random_weights), draws, seed)
        with progress("frames") as advance:
            report = study.run(frames, out, advance)
        paths = write(report, out)
        answer({"tables": tables(report), "files": paths}, *tables(report), *paths)


def _stage_one(
    config: Path, data: Path, checkpoint: Path | None, random_weights: bool, overrides: list[str] | None
) -> "tuple[DumpConfig, Frames, Teacher]":
    """What every command that runs the teacher starts from."""
    from cache.dumping.run import DumpConfig
    from cache.nuscenes.frames import Frames

    settings = load_yaml(config, DumpConfig, overrides or ())
    frames = Frames(root=data, version=settings.version, splits=settings.splits)
    return settings, frames, _live_teacher(settings.teacher, checkpoint, random_weights)


def _live_teacher(config: str, checkpoint: Path | None, random_weights: bool) -> "Teacher":
    import torch

    from cache.errors import ConfigError
    from cache.teacher.mmdet3d import load_teacher

    if (checkpoint is None) != random_weights:
        raise ConfigError(
            "the teacher needs weights",
            got="both" if checkpoint else "neither",
            expected="--checkpoint or --random-weights",
            cure="Give exactly one of them",
        )
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"  # torchrun's ranks
    return load_teacher(config, checkpoint, device)


@contextmanager
def _dump_progress() -> "Iterator[Callable[[DumpProgress], None]]":
    """A bar that shows a dump's rate and size too."""
    with progress("samples") as advance:
        yield lambda state: advance(
            state.done,
            state.total,
            f"{state.samples_per_s:.1f} samples/s, {state.bytes_per_sample / 1e6:.2f} MB/sample",
        )


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
