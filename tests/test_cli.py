"""The main job through the command line, at a tiny size, and what bad input gets."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from PIL import Image

from cache.versions import PROJECT
from cli import main
from tests.factories.command_line import COMMANDS, parse_cli
from tests.factories.processes import start_cli

ROOT = Path(__file__).parent.parent
TEACHER = ROOT / "configs" / "demo" / "teacher_model.py"

STUDENT = {
    "data": {"version": "v1.0-mini", "train_split": "mini_train", "val_split": "mini_val", "workers": 0},
    "image": {"size": [64, 160]},
    "detector": {
        "image_backbone": "resnet18",
        "image_neck_channels": 32,
        "depth_m": [1.0, 31.0, 2.0],
        "grid": {"x_range_m": [-16.0, 16.0], "y_range_m": [-16.0, 16.0], "cell_m": [0.8, 0.8]},
        "lift_channels": 16,
        "bev_channels": [16, 32, 64],
        "bev_neck_channels": 32,
        "head": {"shared_channels": 16},
    },
    "training": {"epochs": 1, "batch_size": 1},
    "distill": {
        "pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}],
        "terms": [{"kind": "fgd", "fg_weight": 6.0e-3, "bg_weight": 4.0e-2}],
    },
}

DUMP = {
    "teacher": str(TEACHER),
    "version": "v1.0-mini",
    "splits": ["mini_train", "mini_val"],
    "samples_per_shard": 2,
    "batch_size": 2,
    "workers": 0,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command left on the terminal."""

    code: int
    stdout: str
    stderr: str


def cli(*arguments: object) -> Run:
    """Run the command line in this process."""
    printed, complained, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", ["cli", *map(str, arguments)]),
        patch.dict(os.environ, COLUMNS="400"),
        redirect_stdout(printed),
        redirect_stderr(complained),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Run(code=code, stdout=printed.getvalue(), stderr=complained.getvalue())


def cli_without_teacher(*arguments: object) -> Run:
    """Run the command line in a process of its own, in which importing the teacher's libraries is an error."""
    program = f"import sys; sys.modules.update(dict.fromkeys({TEACHER_LIBRARIES!r})); import cli; cli.main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "400"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    return Run(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def refused(*arguments: object, saying: str) -> str:
    """Run a command that must fail with one message, and return it."""
    run = cli(*arguments)
    assert run.code == 1, run.stdout + run.stderr
    # What there is to learn from is shown once every check has passed; files are opened later.
    notes = r"\Av1\.0-mini, .* frames, .* without a point left out\n(image backbone .*\n)?"
    message = " ".join(re.sub(notes, "", run.stderr).split())
    assert message.startswith("error: "), run.stderr
    assert "Traceback" not in message
    assert saying in message
    return message


TEACHER_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine")


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """A tiny world, a store of a teacher with random weights, and a student's configuration."""

    world: Path
    store: Path
    student: Path
    dump: Path


@pytest.fixture(scope="session")
def workshop(made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed (make setup)")
    base = tmp_path_factory.mktemp("workshop")
    made = Workshop(
        world=made_root, store=base / "teacher.zarr", student=base / "student.yaml", dump=base / "dump.yaml"
    )
    made.student.write_text(yaml.safe_dump(STUDENT))
    made.dump.write_text(yaml.safe_dump(DUMP))
    run = cli("dump-teacher", made.dump, "--data", made.world, "--random-weights", "--out", made.store)
    assert run.code == 0, run.stderr
    assert "4 of 4 samples written" in run.stdout
    return made


@pytest.fixture
def copy_world(workshop: Workshop, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the world that a test may break."""
    return lambda: Path(shutil.copytree(workshop.world, tmp_path / "broken-world"))


@pytest.fixture(scope="session")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two distilled steps, made where the teacher's libraries cannot be imported."""
    out = tmp_path_factory.mktemp("runs") / "distilled"
    run = cli_without_teacher(
        "train-student", workshop.student, "--data", workshop.world, "--cache", workshop.store, "--out", out
    )
    assert run.code == 0, run.stderr
    return out


REPORTS = ("plan", "dump-teacher", "inspect", "verify", "train-student", "evaluate", "predict", "fidelity")


def answered(*arguments: object) -> dict:
    """Run a command with --json and return its report."""
    run = cli(*arguments, "--json")
    assert run.code == 0, run.stderr
    return json.loads(run.stdout)


def test_help_names_every_command_and_the_exit_codes() -> None:
    run = cli("--help")
    assert run.code == 0
    assert all(command in run.stdout for command in COMMANDS)
    assert "0 success; 1 an error, or damage found; 2 wrong usage; 130 interrupted; 143 terminated" in run.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(command: str) -> None:
    run = cli(command, "--help")
    assert run.code == 0
    calls = [line.strip() for line in run.stdout.partition("Examples:")[2].splitlines() if line.strip()]
    assert calls
    for call in calls:
        assert call.startswith(f"cli {command} ")
        parse_cli(call)


@pytest.mark.parametrize("command", REPORTS)
def test_commands_that_report_do_so_to_machines(command: str) -> None:
    assert "--json" in cli(command, "--help").stdout


def test_versions() -> None:
    run = cli("--version")
    assert run.code == 0
    versions = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert set(versions) >= {PROJECT, "python", "torch", "zarr", "mmdet3d", "mmcv", "nuscenes-devkit"}
    assert versions["python"] == sys.version.split()[0]
    with patch("cache.versions.LIBRARIES", ("not-a-library",)):
        assert "not-a-library (not installed)" in cli("--version").stdout


def test_completion_of_commands_and_options() -> None:
    environment = os.environ | {"_CLI_COMPLETE": "complete_bash", "COMP_WORDS": "cli ver", "COMP_CWORD": "1"}
    program = [sys.executable, "-c", "import cli; cli.app(prog_name='cli')"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["verify"]


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("verfy",), "No such command 'verfy'"),
        (("verify",), "Missing argument"),
        (("verify", "store", "--fulll"), "No such option"),
        (("plan", "dump.yaml", "--data", "x", "--out", "y", "--probes", "no"), "--probes"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], saying: str) -> None:
    run = cli(*arguments)
    assert run.code == 2
    assert saying in run.stderr
    assert run.stdout == ""


def test_a_traceback_comes_with_debug_alone(tmp_path: Path) -> None:
    refused("verify", tmp_path, saying="StoreError")
    assert "Traceback" in cli("--debug", "verify", tmp_path).stderr


def test_a_bug_is_told_from_a_mistake(tmp_path: Path) -> None:
    with (
        patch("cache.dumping.verify.verify", side_effect=RuntimeError("boom")),
        patch("tempfile.tempdir", str(tmp_path)),
    ):
        message = refused("verify", tmp_path, saying="this is a bug")
    (kept,) = tmp_path.iterdir()
    assert f"Its traceback is in {kept}" in message
    assert "RuntimeError: boom" in kept.read_text()


def test_reports_for_machines(workshop: Workshop, tmp_path: Path) -> None:
    arguments = (workshop.dump, "--data", workshop.world, "--random-weights", "--out")
    planned = answered("plan", *arguments, tmp_path / "new.zarr", "--probes", 1)
    assert planned["samples"] == 4
    assert {array["name"] for array in planned["arrays"]} >= {"features/head", "heatmap", "canvas_mask"}
    assert not (tmp_path / "new.zarr").exists()
    dumped = answered("dump-teacher", *arguments, workshop.store)
    assert (dumped["samples"], dumped["written"], dumped["sealed"]) == (4, 0, True)
    inspected = answered("inspect", workshop.store)
    assert inspected["samples"] == 4
    assert inspected["spec"]["data"]["version"] == "v1.0-mini"
    assert inspected["bytes_per_sample"]["heatmap"] > 0
    token = json.loads((workshop.world / "v1.0-mini" / "sample.json").read_text())[0]["token"]
    picture = tmp_path / "picture.png"
    assert answered("inspect", workshop.store, token, "--out", picture) == {"token": token, "picture": str(picture)}
    verified = answered("verify", workshop.store)
    assert (verified["full"], verified["sealed"], verified["damage"]) == (True, True, [])
    evaluation = ("evaluate", "--data", workshop.world, "--cache", workshop.store, "--out", tmp_path / "evaluation")
    assert 0 <= answered(*evaluation)["nds"] <= 1


def test_damage_for_machines(workshop: Workshop, tmp_path: Path) -> None:
    store = Path(shutil.copytree(workshop.store, tmp_path / "damaged.zarr"))
    next((store / "heatmap").glob("c.0.*")).write_bytes(b"")
    run = cli("verify", store, "--json")
    assert run.code == 1
    (fault,) = json.loads(run.stdout)["damage"]
    assert fault["shard"] == 0
    assert fault["error"]["type"] == "CorruptStoreError"
    assert "heatmap" in fault["error"]["where"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_is_ended_by_signals(workshop: Workshop, tmp_path: Path, number: int, code: int) -> None:
    out = ("--out", tmp_path / "run", "--set", "distill=null", "--set", "training.epochs=500", "--json")
    process = start_cli(tmp_path, "train-student", workshop.student, "--data", workshop.world, *out)
    process.wait_until(lambda: "\nsteps 1/" in "\n" + process.stderr.read_text())
    process.signal(number)
    returned, printed, complaint = process.wait(120)
    assert returned == code, complaint
    assert "Traceback" not in complaint
    assert printed == ""


def test_a_second_dump_does_nothing(workshop: Workshop) -> None:
    before = {path: path.stat().st_mtime_ns for path in workshop.store.rglob("*")}
    run = cli("dump-teacher", workshop.dump, "--data", workshop.world, "--random-weights", "--out", workshop.store)
    assert run.code == 0
    assert "all 4 samples were there already, nothing to do" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in workshop.store.rglob("*")} == before


def test_random_weights_are_flagged_in_the_store(workshop: Workshop) -> None:
    attributes = json.loads((workshop.store / "zarr.json").read_text())["attributes"]
    assert attributes["spec"]["teacher"]["weights"] == "random"


def test_training_leaves_logs_a_checkpoint_and_its_cost(trained: Path) -> None:
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert list((trained / "tensorboard").glob("events.*"))
    header = (trained / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "loss/heatmap", "loss/boxes", "loss/depth"} <= set(header)
    assert [name for name in header if "fgd" in name]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["peak_memory_mb"] > 100


def test_a_finished_run_is_not_overwritten_but_resumed(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "again"))
    arguments = ("train-student", workshop.student, "--data", workshop.world, "--cache", workshop.store, "--out", out)
    refused(*arguments, saying="a training is there already")
    run = cli(*arguments, "--resume", "--set", "training.epochs=2")
    assert run.code == 0, run.stderr
    assert json.loads((out / "summary.json").read_text())["steps"] == 4
    logs = [(out / "csv" / name).read_text().splitlines() for name in ("metrics-0.csv", "metrics.csv")]
    assert [len(log) for log in logs] == [3, 3]


def test_one_key_switches_distillation_off(workshop: Workshop, tmp_path: Path) -> None:
    report = answered(
        *("train-student", workshop.student, "--data", workshop.world, "--out", tmp_path / "alone"),
        *("--set", "distill=null"),
    )
    assert report == json.loads((tmp_path / "alone" / "summary.json").read_text())
    header = (tmp_path / "alone" / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert "fgd" not in header


def test_a_training_is_planned(workshop: Workshop) -> None:
    report = answered("plan-student", workshop.student, "--data", workshop.world, "--cache", workshop.store)
    assert report["steps"] == 2
    assert report["epoch_bytes"] > 0
    assert report["memory"]["each_sample"] > 0


def test_a_profile_says_where_the_time_goes_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    arguments = ("train-student", workshop.student, "--data", workshop.world, "--cache", workshop.store)
    run = cli(*arguments, "--out", tmp_path / "run", "--profile", "--json")
    assert run.code == 0, run.stderr
    parts = {part["name"]: part for part in json.loads(run.stdout)["parts"]}
    assert parts["objective"]["median_s"] > 0
    assert not (tmp_path / "run").exists()


def test_student_and_cached_teacher_are_evaluated(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    for name, source in (("student", ("--checkpoint", checkpoint)), ("teacher", ("--cache", workshop.store))):
        where = ("--data", workshop.world, "--split", "mini_val", "--out", tmp_path / name)
        run = cli("evaluate", *where, *source, "--plots")
        assert run.code == 0, run.stderr
        summary = json.loads((tmp_path / name / "metrics_summary.json").read_text())
        assert 0 <= summary["nd_score"] <= 1
        assert len(list((tmp_path / name / "plots").glob("*.png"))) == 4
        assert "mAP" in run.stdout


def test_the_split_without_annotations_gets_its_results(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "world"
    shutil.copytree(workshop.world / "v1.0-mini", root / "v1.0-test")
    (root / "samples").symlink_to(workshop.world / "samples")
    scenes = json.loads((root / "v1.0-test" / "scene.json").read_text())
    scenes[0]["name"] = "scene-0077"  # of nuScenes' test split
    (root / "v1.0-test" / "scene.json").write_text(json.dumps(scenes))
    (root / "v1.0-test" / "sample_annotation.json").write_text("[]")
    what = ("evaluate", "--data", root, "--version", "v1.0-test", "--split", "test", "--out", tmp_path / "evaluation")
    run = cli(*what, "--checkpoint", trained / "checkpoints" / "last.ckpt")
    assert run.code == 0, run.stderr
    results = tmp_path / "evaluation" / "results_nusc.json"
    assert f"results: {results}" in run.stdout
    assert "no metrics: nuScenes keeps the annotations of test, and its server evaluates this file" in run.stdout
    assert "mAP" not in run.stdout
    found = json.loads(results.read_text())
    samples = json.loads((root / "v1.0-test" / "sample.json").read_text())
    assert found["results"].keys() == {row["token"] for row in samples if row["scene_token"] == scenes[0]["token"]}
    assert found["meta"]["use_camera"]


def test_frames_are_left_out_of_a_dump_and_a_training_and_counted(
    workshop: Workshop, copy_world: Callable[[], Path], tmp_path: Path
) -> None:
    """Of four frames one is excluded, and one lacks its LiDAR file and an image."""
    world = copy_world()
    samples = json.loads((world / "v1.0-mini" / "sample.json").read_text())
    excluded = samples[0]["token"]
    files = json.loads((world / "v1.0-mini" / "sample_data.json").read_text())
    for row in files:
        if row["sample_token"] == samples[-1]["token"] and row["is_key_frame"]:
            (world / row["filename"]).unlink()
    store, out = tmp_path / "teacher.zarr", tmp_path / "run"
    dump = ("dump-teacher", workshop.dump, "--data", world, "--random-weights", "--out", store)
    run = cli(*dump, "--set", f"exclude=[{excluded}]", "--set", "skip_missing=true")
    assert run.code == 0, run.stderr
    assert "mini_train, mini_val: 1 of 3 frames lack a file and are left out (skip_missing)" in " ".join(
        run.stderr.split()
    )
    assert "2 of 2 samples written" in run.stdout
    splits = ("--set", "data.train_split=all", "--set", "data.val_split=test")
    training = ("train-student", workshop.student, "--data", world, "--cache", store, "--out", out, *splits)
    refused(*training, saying="frames of the training split are not in the cache")
    run = cli(*training, "--set", f"data.exclude=[{excluded}]", "--set", "data.skip_missing=true")
    assert run.code == 0, run.stderr
    assert "1 of 3 frames lack a file and are left out (data.skip_missing)" in " ".join(run.stderr.split())
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["frames"], summary["frames_left_out"]) == (2, 2)
    assert "2 frames of 4 left out" in run.stdout


def test_images_and_a_store_suffice_to_evaluate(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    """The root has no tables; the store was dumped on both splits."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "samples").symlink_to(workshop.world / "samples")
    checkpoint = ("--checkpoint", trained / "checkpoints" / "last.ckpt")
    found = []
    for root, frames in ((workshop.world, ()), (images, ("--frames", workshop.store))):
        out = tmp_path / f"evaluation of {root.name}"
        run = cli("evaluate", "--data", root, *checkpoint, *frames, "--out", out)
        assert run.code == 0, run.stderr
        found.append([(out / name).read_text() for name in ("results_nusc.json", "metrics_details.json")])
    assert found[0] == found[1]
    assert len(json.loads(found[0][0])["results"]) == 2
    refused("evaluate", "--data", images, *checkpoint, saying="the nuScenes tables are missing")
    other = ("--frames", workshop.store, "--version", "v1.0-test")
    refused(
        *("evaluate", "--data", images, *checkpoint, *other),
        saying="got frames of v1.0-mini; expected frames of v1.0-test",
    )


def test_a_student_predicts_frames_and_shows_a_scene(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    student = ("predict", trained / "checkpoints" / "last.ckpt", "--data", workshop.world)
    results, video = tmp_path / "new" / "results.json", tmp_path / "scene.gif"
    told = answered(*student, "--out", results, "--video", video, "--min-score", 0.0)
    found = json.loads(results.read_text())
    assert found["meta"]["use_camera"] and len(found["results"]) == told["frames"] == 2
    assert told["boxes"] == sum(map(len, found["results"].values()))
    with Image.open(video) as opened:
        assert opened.n_frames == 2
    token = sorted(found["results"])[0]
    run = cli(*student, "--tokens", token, "--out", tmp_path / "one.json")
    assert (run.code, run.stdout) == (
        0,
        f"{tmp_path / 'one.json'}: {len(found['results'][token]):,} boxes in 1 frames\n",
    )
    assert json.loads((tmp_path / "one.json").read_text())["results"] == {token: found["results"][token]}
    where = ("--out", tmp_path / "none.json")
    refused(*student, *where, "--tokens", "abc", saying="no key frame that is to be used (tokens, ")
    refused(*student, *where, "--tokens", token, "--split", "mini_val", saying="frames are chosen twice")
    refused(*student, *where, "--video", tmp_path / "scene.avi", saying="written as MP4 or GIF")
    assert not (tmp_path / "none.json").exists()


def test_the_cached_teacher_is_compared_with_the_live_one(workshop: Workshop, tmp_path: Path) -> None:
    teacher = ("--teacher", DUMP["teacher"], "--random-weights", "--data", workshop.world)
    told = answered("fidelity", workshop.store, *teacher, "--draws", 1, "--out", tmp_path / "out")
    features = told["tables"][0]
    assert [row[0] for row in features["rows"] if row[1] == "head"] == [
        "no augmentation",
        "moved by 0.05 m",
        "canonical",
    ]
    errors = {row[0]: float(row[2]) for row in features["rows"] if row[1] == "head"}
    assert errors["no augmentation"] < 0.02 < errors["canonical"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"fidelity.md", "fidelity.json", "fidelity.png"}


def test_a_public_checkpoint_is_imported_evaluated_and_trained(workshop: Workshop, tmp_path: Path) -> None:
    import torch
    import torchvision

    out = tmp_path / "imported.ckpt"
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    arguments = ("import-checkpoint", workshop.student, tmp_path / "resnet18.pth", "--out", out)
    refused(*arguments, saying="nothing in the checkpoint fills tensors of the detector")
    allowed = ("image_encoder.neck.*", "lift.*", "bev_*", "head.*")
    options = [part for pattern in allowed for part in ("--allow-missing", pattern)]
    run = cli(*arguments, *options)
    assert run.code == 0, run.stderr
    assert "image_encoder.backbone.layer4.1.bn2.running_var" in run.stdout
    assert "torchvision network: 120 used, 2 unused" in run.stdout
    report = answered(*arguments[:-1], tmp_path / "again.ckpt", *options)
    statuses = [row["status"] for row in report["rows"]]
    assert (report["format"], statuses.count("used"), statuses.count("unused")) == ("torchvision network", 120, 2)
    evaluated = cli("evaluate", "--data", workshop.world, "--checkpoint", out, "--out", tmp_path / "metrics")
    assert evaluated.code == 0, evaluated.stderr
    training = ("train-student", workshop.student, "--data", workshop.world, "--out", tmp_path / "run")
    start = ("--set", f"training.init_from={out}")
    run = cli(*training, "--set", "distill=null", *start)
    assert run.code == 0, run.stderr
    other = ("--set", "detector.image_stride=8", "--set", "distill=null", "--out", tmp_path / "other")
    message = refused(*training[:-2], *other, *start, saying="the checkpoint to start from is another detector's")
    assert "detector.image_stride: the checkpoint's 16, the configuration's 8" in message


def test_a_plan_tells_the_cost_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "store.zarr"
    run = cli(
        "plan", workshop.dump, "--data", workshop.world, "--random-weights", "--out", out, "--probes", 1, "--depth"
    )
    assert run.code == 0, run.stderr
    assert "4 samples" in run.stdout
    assert "depth_points" in run.stdout
    assert "features/head" in run.stdout
    assert "hours together" in run.stdout
    assert not out.exists()


def test_a_store_with_depth_trains_where_no_lidar_is(
    workshop: Workshop, copy_world: Callable[[], Path], tmp_path: Path
) -> None:
    store, world = tmp_path / "depth.zarr", copy_world()
    dumping = (workshop.dump, "--data", world, "--random-weights", "--out", store, "--depth")
    assert cli("dump-teacher", *dumping).code == 0
    for folder in (world / "samples" / "LIDAR_TOP", world / "sweeps"):
        shutil.rmtree(folder)
    training = ("train-student", workshop.student, "--data", world)
    run = cli(*training, "--cache", store, "--out", tmp_path / "run")
    assert run.code == 0, run.stderr
    logged = (tmp_path / "run" / "csv" / "metrics.csv").read_text()
    assert "loss/depth" in logged
    without = cli(*training, "--cache", workshop.store, "--out", tmp_path / "other")
    assert without.code == 1
    assert "error: DataError: a LiDAR file is missing" in without.stderr


def test_inspect_shows_the_store_and_draws_a_sample(workshop: Workshop, tmp_path: Path) -> None:
    from cache.store.reader import TeacherCache

    cache = TeacherCache(workshop.store)
    shown = cli("inspect", workshop.store)
    assert shown.code == 0, shown.stderr
    for word in (cache.spec.fingerprint, "random weights", "backbone2", "SQNR", "zeros"):
        assert word in shown.stdout
    picture = tmp_path / "sample.png"
    drawn = cli("inspect", workshop.store, cache.tokens[0], "--out", picture)
    assert drawn.code == 0, drawn.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "report.html"
    written = cli("inspect", workshop.store, "--html", page)
    assert written.code == 0, written.stderr
    assert str(page) in written.stdout
    assert cache.spec.fingerprint in page.read_text()
    other = cli("inspect", workshop.store, cache.tokens[0], "--view", "flip_y")
    assert other.code == 1
    assert "does not hold this view" in other.stderr
    assert "got flip_y; expected 0: canonical" in other.stderr


def test_verify_finds_a_flipped_bit_and_repairs_it(workshop: Workshop, tmp_path: Path) -> None:
    store = Path(shutil.copytree(workshop.store, tmp_path / "store.zarr"))
    assert cli("verify", store).code == 0
    shard = min((store / "features" / "head").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    damaged = cli("verify", store)
    assert damaged.code == 1
    assert "token" in damaged.stdout
    mended = cli("verify", store, "--repair", workshop.dump, "--data", workshop.world, "--random-weights")
    assert mended.code == 0, mended.stdout + mended.stderr
    assert shard.read_bytes() == (workshop.store / shard.relative_to(store)).read_bytes()


def test_parts_fill_one_store(workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "store.zarr"
    arguments = ("dump-teacher", workshop.dump, "--data", workshop.world, "--random-weights", "--out", out)
    first = cli(*arguments, "--part", "1/2")
    assert "not complete yet" in first.stdout
    assert "complete" in cli(*arguments, "--part", "0/2").stdout
    whole = {path.relative_to(workshop.store): path for path in workshop.store.rglob("c.*")}
    assert whole
    assert all((out / name).read_bytes() == path.read_bytes() for name, path in whole.items())


# What bad input gets.


def test_early_mistakes_are_named_before_the_first_step(workshop: Workshop, tmp_path: Path) -> None:
    training = ("train-student", workshop.student, "--data", workshop.world, "--cache", workshop.store)
    training = (*training, "--out", tmp_path / "run")
    shared = refused(*training, "--set", "data.val_split=mini_train", saying="training and validation share frames")
    assert "got mini_train and mini_train" in shared
    swapped = (
        "[[car],[bus,trailer],[truck,construction_vehicle],[barrier],[motorcycle,bicycle],[pedestrian,traffic_cone]]"
    )
    inherited = ("--set", "distill.inherit_head=true", "--set", f"detector.head.tasks={swapped}")
    refused(*training, *inherited, saying="the teacher's head is ordered otherwise")
    assert not (tmp_path / "run").exists()
    rehearsed = cli(*training)
    assert rehearsed.code == 0, rehearsed.stderr
    assert f"warning: {workshop.store} holds the features of a teacher with random weights" in rehearsed.stderr


def test_the_index_shows_what_the_tables_hold(made_root: Path) -> None:
    shown = cli("index", "--data", made_root, "--version", "v1.0-mini")
    assert shown.code == 0, shown.stderr
    assert shown.stdout.startswith("v1.0-mini: 2 scenes, 4 frames, ")
    report = answered("index", "--data", made_root, "--version", "v1.0-mini")
    assert (report["splits"]["mini_train"], report["splits"]["mini_val"], report["boxes"]["frames"]) == (2, 2, 4)
    assert Path(report["path"]).is_dir()


def test_a_missing_data_root(workshop: Workshop, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    message = refused("train-student", workshop.student, "--data", gone, saying="the nuScenes tables are missing")
    assert str(gone) in message
    out = tmp_path / "store.zarr"
    refused("dump-teacher", workshop.dump, "--data", gone, "--random-weights", "--out", out, saying="are missing")
    assert not out.exists()


def test_a_missing_version(workshop: Workshop, tmp_path: Path) -> None:
    message = refused(
        *("train-student", workshop.student, "--data", workshop.world, "--out", tmp_path / "run"),
        *("--set", "data.version=v1.0-trainval", "--set", "distill=null"),
        saying="expected v1.0-trainval/",
    )
    assert "v1.0-mini" in message


def test_an_empty_split(workshop: Workshop, tmp_path: Path) -> None:
    refused(
        *("train-student", workshop.student, "--data", workshop.world, "--out", tmp_path / "run"),
        *("--set", "data.train_split=test", "--set", "distill=null"),
        saying="the split holds no key frame",
    )


def test_a_missing_configuration(workshop: Workshop, tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    message = refused("train-student", gone, "--data", workshop.world, saying="the configuration cannot be read")
    assert str(gone) in message


def test_an_unknown_key(workshop: Workshop) -> None:
    refused(
        *("train-student", workshop.student, "--data", workshop.world, "--set", "training.batchsize=2"),
        saying="unknown key 'training.batchsize': did you mean 'batch_size'?",
    )


def test_a_missing_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone.pth", tmp_path / "store.zarr"
    message = refused(
        *("dump-teacher", workshop.dump, "--data", workshop.world, "--checkpoint", gone, "--out", out),
        saying="checkpoint",
    )
    assert str(gone) in message
    assert not out.exists()
    refused("evaluate", "--data", workshop.world, "--checkpoint", gone, saying="the student's checkpoint is missing")


def test_a_checkpoint_that_does_not_fit(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    message = refused(
        *("dump-teacher", workshop.dump, "--data", workshop.world, "--out", tmp_path / "store.zarr"),
        *("--checkpoint", trained / "checkpoints" / "last.ckpt"),
        saying="last.ckpt",
    )
    assert "pts_" in message
    assert not (tmp_path / "store.zarr").exists()


def test_weights_must_be_chosen(workshop: Workshop, tmp_path: Path) -> None:
    refused(
        *("dump-teacher", workshop.dump, "--data", workshop.world, "--out", tmp_path / "store.zarr"),
        saying="the teacher needs weights; got neither; expected --checkpoint or --random-weights",
    )


def test_one_detector_is_evaluated(tmp_path: Path) -> None:
    missing = ("evaluate", "--data", tmp_path)
    both = (*missing, "--checkpoint", tmp_path / "last.ckpt", "--cache", tmp_path / "teacher.zarr")
    for arguments, got in ((missing, "neither"), (both, "both")):
        refused(*arguments, saying=f"needs exactly one detector; got {got}; expected --checkpoint or --cache")


def test_a_store_that_differs(workshop: Workshop) -> None:
    before = (workshop.store / "zarr.json").read_bytes()
    run = cli(
        *("dump-teacher", workshop.dump, "--data", workshop.world, "--random-weights", "--out", workshop.store),
        *("--set", "head_maps=false"),
    )
    assert run.code == 1
    assert "head_maps" in run.stderr
    assert (workshop.store / "zarr.json").read_bytes() == before


def test_a_missing_camera_image(workshop: Workshop, copy_world: Callable[[], Path], tmp_path: Path) -> None:
    world = copy_world()
    for image in (world / "samples" / "CAM_BACK").iterdir():
        image.unlink()
    message = refused(
        *("train-student", workshop.student, "--data", world, "--set", "distill=null", "--out", tmp_path / "run"),
        *("--set", "data.workers=1"),
        saying="a camera image is missing",
    )
    assert "CAM_BACK" in message
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_corrupt_image(workshop: Workshop, copy_world: Callable[[], Path], tmp_path: Path) -> None:
    world = copy_world()
    for image in (world / "samples" / "CAM_FRONT").iterdir():
        image.write_bytes(image.read_bytes()[:1000])
    refused(
        *("train-student", workshop.student, "--data", world, "--set", "distill=null", "--out", tmp_path / "run"),
        saying="a camera image is corrupt",
    )


def test_a_point_that_is_not_finite(workshop: Workshop, copy_world: Callable[[], Path], tmp_path: Path) -> None:
    world = copy_world()
    sweep = sorted((world / "samples" / "LIDAR_TOP").iterdir())[-1]
    content = bytearray(sweep.read_bytes())
    content[40:44] = b"\x00\x00\xc0\x7f"
    sweep.write_bytes(content)
    out = tmp_path / "store.zarr"
    message = refused(
        *("dump-teacher", workshop.dump, "--data", world, "--random-weights", "--out", out),
        saying="a LiDAR file holds a value that is not finite",
    )
    assert sweep.name in message
    # What was committed before is kept, but no reader takes the store for a whole one.
    refused("evaluate", "--data", world, "--cache", out, saying="store")


def test_a_token_that_is_not_in_the_cache(workshop: Workshop, tmp_path: Path) -> None:
    store = tmp_path / "val-only.zarr"
    only_val = ("--set", "splits=[mini_val]")
    run = cli("dump-teacher", workshop.dump, "--data", workshop.world, "--random-weights", "--out", store, *only_val)
    assert run.code == 0, run.stderr
    refused(
        *("train-student", workshop.student, "--data", workshop.world, "--cache", store, "--out", tmp_path / "run"),
        saying="frames of the training split are not in the cache",
    )


def test_distillation_without_a_cache(workshop: Workshop, tmp_path: Path) -> None:
    refused(
        *("train-student", workshop.student, "--data", workshop.world, "--out", tmp_path / "run"),
        saying="distillation needs a teacher's cache",
    )
