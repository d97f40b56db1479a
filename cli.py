"""The command line: one command for each stage; the work is done in cache/, student/ and demo/.

Commands import torch, mmdet3d and Lightning themselves: --help stays fast, and training never imports mmdet3d.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperGroup

from cache.config import load_yaml
from cache.errors import ConfigError, OfflineDistillWarning
from cache.terminal.console import examples, print_note, print_report, progress, report_writer
from cache.terminal.errors import exit_codes
from cache.versions import installed_versions

if TYPE_CHECKING:
    from cache import DumpConfig, Frames, Teacher
    from cache.dumping.run import DumpProgress
    from student.config.student import StudentConfig

TEACHER = "configs/centerpoint_pillar02.yaml --data nuscenes --checkpoint teacher.pth"
"""The teacher of the examples."""


class Commands(TyperGroup):
    """The group of commands, which maps exceptions to one message and the documented exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with exit_codes(ctx.params["debug"]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 success; 1 an error, or damage found; 2 wrong usage; 130 interrupted; 143 terminated.",
)

Data = Annotated[Path, typer.Option("--data", help="nuScenes root: the folder of samples/, sweeps/ and v1.0-*/.")]
DumpFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a DumpConfig.")]
StudentFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a StudentConfig.")]
Checkpoint = Annotated[Path | None, typer.Option(help="The teacher's weights.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Random weights, recorded in the store.")]
Boxes = Annotated[str, typer.Option(help="Boxes of the checkpoint: auto (by its version), old (mmdet3d < 1.0) or new.")]
Ema = Annotated[bool | None, typer.Option("--ema/--no-ema", help="Which, of a checkpoint with a moving average.")]
Device = Annotated[str | None, typer.Option(help="Device of the teacher, by default the GPU if there is one.")]
TeacherName = Annotated[
    str | None, typer.Option("--teacher", help="mmdet3d configuration or module:factory, instead of CONFIG's teacher.")
]
Caches = Annotated[
    list[str] | None, typer.Option("--cache", help="A teacher's store, or its URL; repeat for several teachers.")
]
FramesOf = Annotated[
    Path | None, typer.Option("--frames", help="A store that carries the frames, where --data has no tables.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a value: dotted.key=value.")]
Depth = Annotated[bool, typer.Option("--depth", help="Store LiDAR depth in the cameras; short for --set depth=true.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]


def command(*lines: str, computes: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, with examples at the end of its help; one that computes leaves cores in use to others."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**arguments: Any) -> None:
            if computes:
                from cache.threads import use_free_cores

                use_free_cores()
            function(**arguments)

        return app.command(epilog=examples(*lines))(run)

    return register


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name, version in installed_versions().items():
            print_report(f"{name} {version or '(not installed)'}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Distil a LiDAR teacher into a camera student; the teacher runs once."""


@command("cli make-world world --config configs/demo/world.yaml")
def make_world(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of a WorldConfig; default values without it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Generate a small world in nuScenes' format, with cameras and LiDAR."""
    from demo.world.config import WorldConfig
    from demo.world.make import make_world

    world = load_yaml(config, WorldConfig, overrides or ())
    with progress("key frames") as advance:
        made = make_world(out, world, progress=advance)
    print_report(f"{out}: {'made' if made else 'exists already, made by the same configuration'}")


@command(
    "cli train-teacher configs/demo/teacher_model.py --data world --version v1.0-mini --split made_teacher --out run",
    computes=True,
)
def train_teacher(
    config: Annotated[str, typer.Argument(help="mmdet3d configuration: a file, or a name in its model zoo.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and mmengine's logs.")],
    version: Annotated[str, typer.Option(help="nuScenes version.")] = "v1.0-trainval",
    split: Annotated[str, typer.Option(help="nuScenes split.")] = "train",
    lidar: Annotated[
        str, typer.Option(help="Channel of the LiDAR, by default LIDAR_TOP, or the only one.", show_default=False)
    ] = "",
) -> None:
    """Train a LiDAR teacher with mmdet3d."""
    from cache import Frames
    from cache.teacher.training import train_teacher

    frames = Frames(root=data, version=version, splits=(split,), lidar=lidar)
    print_report(f"checkpoint: {train_teacher(config, frames, out)}")


@command("cli teachers --json", "cli teachers --markdown > teachers.md")
def teachers(
    names: Annotated[list[str] | None, typer.Argument(help="Configurations, by default all of nuScenes.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    json: Json = False,
) -> None:
    """Try every nuScenes configuration of mmdet3d's model zoo as a teacher, with random weights."""
    from cache.teacher.zoo import survey_zoo
    from cache.visualization.zoo import zoo_table

    with report_writer(json) as write_report:
        with progress("configurations") as advance:
            found = survey_zoo(names or (), advance)
        table = zoo_table(found)
        write_report({"teachers": found}, table.markdown() if markdown else table)


@command("cli index --data nuscenes", "cli index --data nuscenes --version v1.0-mini --json")
def index(
    data: Data,
    version: Annotated[str, typer.Option(help="nuScenes version.")] = "v1.0-trainval",
    json: Json = False,
) -> None:
    """Make the index of the tables, where there is none yet, and show what it holds."""
    from cache.nuscenes.counts import summarise_index, warn_of_boxes

    with report_writer(json) as write_report:
        summary = summarise_index(data, version)
        write_report(summary)
    warn_of_boxes(summary.boxes, version)


@command(f"cli plan {TEACHER} --out teacher.zarr")
def plan(
    config: DumpFile,
    data: Data,
    out: Annotated[Path, typer.Option(help="Path of the planned store.")],
    teacher: TeacherName = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    boxes: Boxes = "auto",
    ema: Ema = None,
    device: Device = None,
    probes: Annotated[int, typer.Option(min=1, help="Number of frames to measure.")] = 4,
    depth: Depth = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Estimate size, error and duration of a dump from a few frames; nothing is written."""
    from cache.dumping.estimate import plan
    from cache.visualization.summary import plan_tables

    with report_writer(json) as write_report:
        weights = Weights(checkpoint, random_weights, boxes, ema, device)
        settings, frames, live = _dump_inputs(config, data, teacher, weights, overrides, depth)
        costs = plan(settings, frames, live, out, probes)
        write_report(costs, *plan_tables(costs))
    costs.require_room()


@command(
    f"cli dump-teacher {TEACHER} --out teacher.zarr",
    "cli dump-teacher configs/demo/dump.yaml --data world --random-weights --out teacher.zarr --part 0/4",
    computes=True,
)
def dump_teacher(
    config: DumpFile,
    data: Data,
    out: Annotated[Path, typer.Option(help="The store to create or resume.")],
    teacher: TeacherName = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    boxes: Boxes = "auto",
    ema: Ema = None,
    device: Device = None,
    part: Annotated[str | None, typer.Option(help="i/n: write only part i of n; not needed with torchrun.")] = None,
    depth: Depth = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Run the teacher once over the data set and write its features to a store."""
    from cache import dump
    from cache.store.partition import Part

    chosen = Part.of_rank(os.environ) if part is None else Part.parse(part)
    with report_writer(json) as write_report:
        weights = Weights(checkpoint, random_weights, boxes, ema, device)
        settings, frames, live = _dump_inputs(config, data, teacher, weights, overrides, depth)
        with _dump_progress() as advance:
            write_report(dump(settings, frames, live, out, advance, chosen, checkpoint))


@command("cli inspect teacher.zarr", "cli inspect teacher.zarr --html report.html")
def inspect(
    store: Annotated[Path, typer.Argument(help="A store, complete or not.")],
    token: Annotated[str | None, typer.Argument(help="A sample to draw.")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture's file, by default TOKEN.png.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page to this file.")] = None,
    view: Annotated[str | None, typer.Option(help="The view to draw, by default the first.")] = None,
    json: Json = False,
) -> None:
    """Show a store's identity, layers, sizes, error report and statistics; with a token, draw the sample."""
    from cache import TeacherCache
    from cache.visualization import plot, store_tables, write_html
    from cache.visualization.pictures import picture_path
    from cache.visualization.summary import statistics_table, summarise

    with report_writer(json) as write_report:
        cache = TeacherCache(store, allow_partial=True)
        if html is not None:
            with progress("samples") as advance:
                write_html(cache, html, progress=advance)
            write_report({"page": html}, html)
        elif token is not None:
            picture = out or picture_path(token)
            plot(cache[token], 0 if view is None else cache.view(view)).savefig(picture, dpi=110)
            write_report({"token": token, "picture": picture}, picture)
        else:
            summary = summarise(cache)
            write_report(summary, *store_tables(cache), statistics_table(summary.statistics))


@command("cli verify teacher.zarr --quick", f"cli verify teacher.zarr --repair {TEACHER}")
def verify(
    store: Annotated[Path, typer.Argument(help="The store to verify.")],
    full: Annotated[bool, typer.Option("--full/--quick", help="Every byte, or documents, sizes and indexes.")] = True,
    repair: Annotated[Path | None, typer.Option(help="The store's DumpConfig: dump damaged shards again.")] = None,
    data: Annotated[Path | None, typer.Option(help="nuScenes root, for --repair.")] = None,
    teacher: TeacherName = None,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    boxes: Boxes = "auto",
    ema: Ema = None,
    device: Device = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Find damage in a store, and repair it; exit code 1 if damage remains."""
    from cache.dumping.verify import repair as repair_store
    from cache.dumping.verify import verify

    with report_writer(json) as write_report:
        if repair is None:
            with progress("shards") as advance:
                report = verify(store, full, advance)
        else:
            if data is None:
                raise ConfigError("a repair runs the teacher again", expected="--data", cure="Give the nuScenes root")
            weights = Weights(checkpoint, random_weights, boxes, ema, device)
            settings, frames, live = _dump_inputs(repair, data, teacher, weights, overrides)
            with _dump_progress() as advance:
                report = repair_store(store, settings, frames, live, advance, checkpoint)
        write_report(report)
    if report.damage:
        raise typer.Exit(1)


@command(
    "cli copy teacher.zarr s3://bucket/teacher.zarr",
    "cli copy s3://bucket/teacher.zarr /local/teacher.zarr --layers head",
)
def copy(
    source: Annotated[str, typer.Argument(help="A complete store, or its URL: s3://, gs://, hf://datasets/, ...")],
    target: Annotated[str, typer.Argument(help="The copy's folder or URL; an interrupted copy goes on.")],
    layers: Annotated[list[str] | None, typer.Option(help="Copy this layer only; repeat for several.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Shards to copy at a time.")] = 8,
    json: Json = False,
) -> None:
    """Copy a store, or some layers of it, and compare every byte that arrives with its checksum."""
    from cache.store.copy import copy_store

    with report_writer(json) as write_report, progress("shards") as advance:
        write_report(copy_store(source, target, layers, workers, advance))


@command(
    "cli derive teacher.zarr small.zarr --set layers.head.target_sqnr_db=26",
    "cli derive a.zarr b.zarr c.zarr committee.zarr --mean",
)
def derive(
    stores: Annotated[list[Path], typer.Argument(help="A complete store; with --mean, those of several teachers.")],
    out: Annotated[Path, typer.Argument(help="The store to create or resume.")],
    overrides: Overrides = None,
    mean: Annotated[bool, typer.Option("--mean", help="Average several teachers, and keep their variance.")] = False,
    align: Annotated[bool, typer.Option(help="With --mean: rotate each teacher's features to the first's.")] = True,
    json: Json = False,
) -> None:
    """Write a store without running the teacher: with other codecs, or the mean of several teachers' stores."""
    from cache.store.committee import average
    from cache.store.reencode import reencode

    if (len(stores) > 1) != mean or (mean and overrides):
        raise ConfigError(
            "derive takes one store and --set, or several stores and --mean",
            got=f"{len(stores)} stores{', --mean' if mean else ''}{', --set' if overrides else ''}",
            cure="Add or leave out --mean; codecs of a mean are the first store's",
        )
    with report_writer(json) as write_report, progress("shards") as advance:
        if mean:
            write_report(average(stores, out, align, advance))
        else:
            write_report(reencode(stores[0], out, overrides or (), advance))


@command(
    "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --out runs/distilled",
    "cli train-student configs/bevdepth_r50.yaml --data nuscenes --set distill=null --out runs/alone",
    "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --resume",
    "cli train-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr --profile",
    computes=True,
)
def train_student(
    config: StudentFile,
    data: Data,
    cache: Caches = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, by default runs/<name of CONFIG>.")] = None,
    resume: Annotated[bool, typer.Option(help="Resume from the run's last checkpoint.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Time the parts of some steps; write nothing.")] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train a camera student, distilling from the store (without distillation: --set distill=null)."""
    from student.config.student import StudentConfig
    from student.training.launcher import is_first_rank
    from student.training.profile import profile_student
    from student.training.trainer import train_student
    from student.visualization.training import profile_advice, profile_table

    settings = load_yaml(config, StudentConfig, overrides or ())
    bar = progress("steps") if is_first_rank() else nullcontext(lambda *_: None)
    with report_writer(json) as write_report, bar as advance:
        if profile:
            times = profile_student(settings, data, cache or [], progress=advance)
            write_report(times, profile_table(times), profile_advice(times))
            return
        run = out or Path("runs") / config.stem
        summary = train_student(settings, data, cache or [], run, resume, progress=advance)
    if summary is not None:
        write_report(summary)


@command(
    "cli plan-student configs/bevdepth_r50.yaml --data nuscenes --cache teacher.zarr",
    "cli plan-student configs/bevdepth_r50.yaml --data nuscenes --set distill=null --set training.batch_size=4",
)
def plan_student(
    config: StudentFile, data: Data, cache: Caches = None, overrides: Overrides = None, json: Json = False
) -> None:
    """Estimate memory, steps and bytes to read of a training from two frames; nothing is written."""
    from student.config.student import StudentConfig
    from student.training.plan import plan_training
    from student.visualization.training import plan_tables

    with report_writer(json) as write_report:
        costs = plan_training(load_yaml(config, StudentConfig, overrides or ()), data, cache or [])
        write_report(costs, *plan_tables(costs))


@command(
    "cli import-checkpoint configs/bevdepth4d_r50.yaml bevdepth4d-r50.pth --out bevdepth4d-r50.ckpt",
    "cli import-checkpoint configs/bevdepth_r50.yaml resnet50.pth --out start.ckpt --allow-missing 'head.*'",
)
def import_checkpoint(
    config: StudentFile,
    checkpoint: Annotated[Path, typer.Argument(help="A public BEVDet or BEVDepth checkpoint, or torchvision weights.")],
    out: Annotated[Path, typer.Option(help="The student's checkpoint to create.")],
    allow_missing: Annotated[list[str] | None, typer.Option(help="Tensors that may keep initial values.")] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Convert a public checkpoint to a student's, for `evaluate` and training.init_from; list every tensor."""
    from student.config.student import StudentConfig
    from student.converters.convert import plan_import
    from student.visualization.tables import import_table

    with report_writer(json) as write_report:
        plan = plan_import(checkpoint, load_yaml(config, StudentConfig, overrides or ()))
        write_report(plan.report, import_table(plan.report), plan.report)
        plan.write(out, allow_missing or ())


@command(
    "cli evaluate --data nuscenes --checkpoint runs/distilled/checkpoints/last.ckpt",
    "cli evaluate --data images --frames teacher.zarr --checkpoint runs/distilled/checkpoints/last.ckpt",
    "cli evaluate --data nuscenes --cache teacher.zarr --json",
    computes=True,
)
def evaluate(
    data: Data,
    checkpoint: Annotated[Path | None, typer.Option(help="A student's checkpoint.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A store: evaluate the teacher from its cached maps.")] = None,
    frames_of: FramesOf = None,
    version: Annotated[str | None, typer.Option(help="nuScenes version, by default the detector's.")] = None,
    split: Annotated[str | None, typer.Option(help="nuScenes split, by default the detector's last.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the devkit's files.")] = Path("evaluation"),
    plots: Annotated[bool, typer.Option("--plots", help="Draw curves, errors and boxes into OUT/plots.")] = False,
    json: Json = False,
) -> None:
    """Compute the official nuScenes detection metrics of a student, or of the teacher from its store."""
    from cache import Frames, TeacherCache
    from cache.store.stored_frames import StoredFrames
    from student.evaluation.detect import student_detections
    from student.evaluation.evaluate import evaluate
    from student.evaluation.submission import RESULTS, write_submission
    from student.evaluation.teacher_boxes import teacher_detections
    from student.evaluation.truth import is_secret
    from student.models.checkpoint import load_student
    from student.training.preflight import chosen_frames
    from student.visualization.plots import save_evaluation_plots
    from student.visualization.tables import metrics_table

    with report_writer(json) as write_report, progress("samples") as advance:
        if checkpoint is not None and cache is None:
            detector, config = load_student(checkpoint)
            frames = chosen_frames(_student_frames(config, data, version, split, frames_of), config, lidar=False)
            detections = student_detections(detector, config, frames)
        elif cache is not None and checkpoint is None:
            teacher = TeacherCache(cache)
            identity = teacher.spec.data
            frames = Frames(
                root=data,
                version=version or identity.version,
                splits=(split or identity.splits[-1],),
                max_sweeps=0,
                lidar=identity.lidar,
                store=StoredFrames(path=frames_of or cache),
            )
            detections = teacher_detections(teacher, frames.tokens)
        else:
            raise _exactly_one("evaluate needs exactly one detector", checkpoint, "--checkpoint or --cache")
        sensor: Literal["camera", "lidar"] = "camera" if cache is None else "lidar"
        if is_secret(frames):
            results = out / RESULTS
            write_submission(detections, frames, results, sensor, advance)
            known = "no metrics: nuScenes keeps the annotations of test, and its server evaluates this file"
            write_report({"results": results, "metrics": None}, f"results: {results}", known)
            return
        metrics = evaluate(detections, frames, out, sensor, advance)
        if plots:
            save_evaluation_plots(out, frames)
    write_report(metrics, metrics_table(metrics), f"details: {out}")
    for remark in metrics.remarks:
        warnings.warn(remark, OfflineDistillWarning, stacklevel=1)


@command(
    "cli predict student.ckpt --data nuscenes --version v1.0-test --split test --out results_nusc.json",
    "cli predict student.ckpt --data nuscenes --split scene-0103 --out scene.json --video scene.mp4",
    "cli predict student.ckpt --data nuscenes --tokens ca9a282c9e77460f8360f564131a8af5 --out frame.json",
    computes=True,
)
def predict(
    student: Annotated[Path, typer.Argument(help="A student's checkpoint.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="File of the results in nuScenes' JSON format, as its server takes it.")],
    split: Annotated[
        str | None, typer.Option(help="nuScenes split or a scene's name, by default the detector's last split.")
    ] = None,
    tokens: Annotated[list[str] | None, typer.Option(help="A key frame's token; repeat for several frames.")] = None,
    version: Annotated[str | None, typer.Option(help="nuScenes version, by default the detector's.")] = None,
    frames_of: FramesOf = None,
    video: Annotated[Path | None, typer.Option(help="The first scene of the frames, as .mp4 or .gif.")] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a box in the video.")] = 0.3,
    json: Json = False,
) -> None:
    """Detect boxes with a student and write them in nuScenes' results format; show a scene as a video."""
    from cache.nuscenes.completeness import only
    from student.evaluation.detect import student_detections
    from student.evaluation.results import read_submission
    from student.evaluation.submission import write_submission
    from student.models.checkpoint import load_student
    from student.training.preflight import chosen_frames
    from student.visualization.video import require_suffix, scene_pictures, write_video

    if split is not None and tokens:
        raise ConfigError("frames are chosen twice", got="--split and --tokens", cure="Give one of them")
    if video is not None:
        require_suffix(video)
    with report_writer(json) as write_report:
        detector, config = load_student(student)
        frames = _student_frames(config, data, version, "all" if tokens else split, frames_of)
        frames = only(frames, tokens) if tokens else chosen_frames(frames, config, lidar=False)
        with progress("samples") as advance:
            write_submission(student_detections(detector, config, frames), frames, out, progress=advance)
        found = read_submission(out)
        report = {"results": out, "frames": len(frames), "boxes": sum(map(len, found.values())), "video": video}
        lines = [f"{out}: {report['boxes']:,} boxes in {len(frames):,} frames"]
        if video is not None:
            reach_m = max(map(abs, (*config.detector.grid.x_range_m, *config.detector.grid.y_range_m)))
            with progress("pictures") as advance:
                write_video(video, scene_pictures(frames, found, student.stem, reach_m, min_score, advance))
            lines.append(str(video))
        write_report(report, *lines)


@command(
    "cli fidelity teacher.zarr --teacher configs/demo/teacher_model.py --checkpoint teacher.pth --data world",
    computes=True,
)
def fidelity(
    store: Annotated[Path, typer.Argument(help="A store; its views determine which sets of views are compared.")],
    teacher: Annotated[str, typer.Option(help="The teacher's mmdet3d configuration, as in its DumpConfig.")],
    data: Data,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    boxes: Boxes = "auto",
    ema: Ema = None,
    device: Device = None,
    split: Annotated[str | None, typer.Option(help="nuScenes split, by default the store's last.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="BEV matrices for each frame and set of views.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the BEV matrices.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for tables, pictures and the devkit's files.")] = Path("fidelity"),
    json: Json = False,
) -> None:
    """Compare the cached, warped teacher with the live teacher on augmented points."""
    from cache import Frames, TeacherCache
    from student.fidelity.report import tables, write
    from student.fidelity.study import FidelityStudy

    with report_writer(json) as write_report:
        cache = TeacherCache(store)
        identity = cache.spec.data
        live = _live_teacher(teacher, Weights(checkpoint, random_weights, boxes, ema, device), cache.spec.points.hook)
        splits = (split or identity.splits[-1],)
        frames = Frames(root=data, version=identity.version, splits=splits, lidar=identity.lidar)
        study = FidelityStudy(cache, live, draws, seed)
        with progress("frames") as advance:
            report = study.run(frames.with_sweeps(live.points.past_sweeps), out, advance)
        paths = write(report, out)
        write_report({"tables": tables(report), "files": paths}, *tables(report), *paths)


class Weights(NamedTuple):
    """Where a teacher's weights come from, and where it runs."""

    checkpoint: Path | None
    random: bool
    boxes: str
    ema: bool | None
    device: str | None


def _dump_inputs(
    config: Path, data: Path, name: str | None, weights: Weights, overrides: Overrides, depth: bool = False
) -> "tuple[DumpConfig, Frames, Teacher]":
    """The configuration, frames and teacher of a dump."""
    from cache import DumpConfig
    from cache.nuscenes.counts import count_boxes, warn_of_boxes

    chosen = [*(overrides or ()), *(["depth=true"] if depth else ()), *([f"teacher={name}"] if name else ())]
    settings = load_yaml(config, DumpConfig, chosen)
    frames = settings.frames(data)
    live = _live_teacher(settings.teacher, weights, settings.points)
    where, counts = f"{settings.version}, {', '.join(settings.splits)}", count_boxes(frames)
    print_note(f"{where}: {counts}")
    warn_of_boxes(counts, where)
    return settings, frames.with_sweeps(live.points.past_sweeps), live


def _live_teacher(name: str, weights: Weights, hook: str | None) -> "Teacher":
    import torch

    from cache.store.partition import environment_number
    from cache.teacher.checkpoint import LoadOptions
    from cache.teacher.mmdet3d import load_teacher
    from cache.teacher.plugins import is_plugin, make_teacher

    if (weights.checkpoint is None) != weights.random:
        raise _exactly_one("the teacher needs weights", weights.checkpoint, "--checkpoint or --random-weights")
    gpu = f"cuda:{environment_number(os.environ, 'LOCAL_RANK', 0)}"  # torchrun's ranks
    device = weights.device or (gpu if torch.cuda.is_available() else "cpu")
    if is_plugin(name):
        return make_teacher(name, weights.checkpoint, device)
    options = LoadOptions.of(weights.boxes, weights.ema)
    return load_teacher(name, weights.checkpoint, device, options=options, hook=hook)


def _student_frames(
    config: "StudentConfig", data: Path, version: str | None, split: str | None, store: Path | None
) -> "Frames":
    """The frames that a student detects boxes in, by default its validation's."""
    from cache import Frames
    from cache.store.stored_frames import StoredFrames

    return Frames(
        root=data,
        version=version or config.data.version,
        splits=(split or config.data.val_split,),
        max_sweeps=0,
        cameras=config.data.cameras,
        lidar=config.data.lidar,
        store=None if store is None else StoredFrames(path=store),
    )


def _exactly_one(what: str, first: Path | None, options: str) -> ConfigError:
    got = "neither" if first is None else "both"
    return ConfigError(what, got=got, expected=options, cure="Give exactly one of them")


@contextmanager
def _dump_progress() -> "Iterator[Callable[[DumpProgress], None]]":
    """A progress bar with a dump's rate and bytes a sample."""
    with progress("samples") as advance:

        def show(state: "DumpProgress") -> None:
            rates = f"{state.samples_per_s:.1f} samples/s, {state.bytes_per_sample / 1e6:.2f} MB/sample"
            advance(state.done, state.total, rates)

        yield show


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
