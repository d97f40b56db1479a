"""Whole trainings, tiny ones; those of this process first, then real processes that are stopped and killed."""

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from torch import nn

from cache.errors import ConfigError, DataError, StoppedError
from student.config.student import StudentConfig
from student.models.checkpoint import load_student
from student.models.detectors import BevDetector
from student.training import checkpointing
from student.training.trainer import train_student
from tests.factories.processes import CliProcess, start_cli
from tests.factories.students import tiny_student

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def train(config: StudentConfig, world: Path, out: Path, resume: bool = False) -> Path:
    """Train without a teacher in this process; returns the last checkpoint."""
    train_student(config, world, [], out, resume)
    return out / "checkpoints" / "last.ckpt"


def losses(out: Path) -> dict[int, float]:
    """The loss of each step, of the run that took it last."""
    logs = sorted((out / "csv").glob("metrics*.csv"), key=lambda log: (log.stem == "metrics", log.stem))
    rows = [row for log in logs for row in csv.DictReader(log.read_text().splitlines()) if row.get("loss")]
    return {int(row["step"]): float(row["loss"]) for row in rows}


def saved(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


# In this process.


def test_an_average_of_the_weights_is_kept_resumed_and_handed_on(made_root: Path, tmp_path: Path) -> None:
    # One step an epoch: after the first the average is the weights, after the second decay * average + ...
    settings = {"batch_size": 2, "ema": {"decay": 0.75}, "learning_rate": 1e-2}
    first = saved(train(tiny_student(**settings), made_root, tmp_path))
    last = train(tiny_student(**settings, epochs=2), made_root, tmp_path, resume=True)
    second = saved(last)
    assert second["student_weights"] == "average"
    for name in ("detector.bev_backbone.layers.0.0.conv1.weight", "detector.bev_backbone.layers.0.0.bn1.running_var"):
        one, two = first["current_model_state"][name], second["current_model_state"][name]
        torch.testing.assert_close(first["state_dict"][name], one)
        assert not torch.allclose(one, two)
        torch.testing.assert_close(second["state_dict"][name], 0.75 * one + 0.25 * two)
    handed_on = load_student(last)[0].state_dict()
    assert all(torch.equal(value, second["state_dict"][f"detector.{name}"]) for name, value in handed_on.items())


def test_recomputed_activations_change_nothing(made_root: Path, tmp_path: Path) -> None:
    plain, recomputed = (
        saved(train(tiny_student(epochs=2, activation_checkpointing=on), made_root, tmp_path / str(on)))["state_dict"]
        for on in (False, True)
    )
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, msg=name)


def test_half_precision_trains(made_root: Path, tmp_path: Path) -> None:
    train(tiny_student(precision="bf16-mixed"), made_root, tmp_path)
    assert all(map(math.isfinite, losses(tmp_path).values()))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains_on_a_gpu(made_root: Path, tmp_path: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    train(tiny_student(precision=precision), made_root, tmp_path)
    assert all(map(math.isfinite, losses(tmp_path).values()))


def test_the_detector_is_compiled_if_asked(made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    train(tiny_student(), made_root, tmp_path / "plain")
    assert not compiled
    train(tiny_student(compile=True), made_root, tmp_path / "compiled")
    assert [type(module) for module in compiled] == [BevDetector]


@pytest.mark.long
def test_a_compiled_detector_trains_alike(made_root: Path, tmp_path: Path) -> None:
    for on in (False, True):
        train(tiny_student(compile=on), made_root, tmp_path / str(on))
    plain, compiled = losses(tmp_path / "False"), losses(tmp_path / "True")
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_validation_keeps_the_best(made_root: Path, tmp_path: Path) -> None:
    summary = train_student(tiny_student(epochs=3, validate_every=2, ema={"decay": 0.5}), made_root, [], tmp_path)
    assert summary is not None
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text().splitlines()))
    (validated,) = [row for row in rows if row["val/NDS"]]
    assert validated["epoch"] == "1"
    assert summary.best_nds == float(validated["val/NDS"])
    official = json.loads((tmp_path / "validation" / "epoch002" / "metrics_summary.json").read_text())
    assert official["nd_score"] == pytest.approx(summary.best_nds, abs=1e-6)
    assert official["mean_ap"] == pytest.approx(float(validated["val/mAP"]), abs=1e-6)
    assert saved(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == 4
    assert "best.ckpt, NDS" in str(summary)
    assert json.loads((tmp_path / "summary.json").read_text())["best_nds"] == summary.best_nds


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = BevDetector.losses, []

    def broken(self: BevDetector, output: object, batch: object) -> dict:
        calls.append(batch.tokens)
        return real(self, output, batch) | ({"depth": torch.tensor(math.nan)} if len(calls) == 4 else {})

    monkeypatch.setattr(BevDetector, "losses", broken)
    config = tiny_student(class_balanced=True, checkpoint_every_steps=2)
    with pytest.raises(DataError, match=r"the loss is not finite \(step 3, tokens (\w+)\); got .*depth nan") as caught:
        train(config, made_root, tmp_path)
    assert calls[3][0] in str(caught.value)
    assert saved(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_the_rate_falls_at_milestones_counted_in_epochs(made_root: Path, tmp_path: Path) -> None:
    config = tiny_student(epochs=3, schedule="step", milestones=(1, 2), gamma=0.5, learning_rate=4e-4, accumulate=2)
    optimizer = saved(train(config, made_root, tmp_path))["optimizer_states"][0]
    # One step an epoch. After the last step the schedule says what a fourth would have.
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert len(losses(tmp_path)) == 3


def test_another_configuration_is_not_resumed(made_root: Path, tmp_path: Path) -> None:
    train(tiny_student(), made_root, tmp_path)
    with pytest.raises(ConfigError) as caught:
        train(tiny_student(seed=1, epochs=2, gradient_clip=1.0), made_root, tmp_path, resume=True)
    assert "the run was begun with another configuration" in str(caught.value)
    assert "got training.gradient_clip: the checkpoint's 5.0, the configuration's 1.0; training.seed" in str(
        caught.value
    )
    with pytest.raises(ConfigError, match="a training is there already"):
        train(tiny_student(), made_root, tmp_path)
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(tiny_student(), made_root, tmp_path / "other", resume=True)


# Interrupted, in this process.


@dataclass(frozen=True, kw_only=True)
class Straight:
    """A training that nothing interrupts: three epochs of eight draws from two frames, with all that has a state."""

    config: StudentConfig
    losses: dict[int, float]

    @property
    def steps_per_epoch(self) -> int:
        return len(self.losses) // 3

    def assert_equal(self, out: Path) -> None:
        assert losses(out) == pytest.approx(self.losses, rel=1e-3)


@pytest.fixture(scope="module")
def straight(made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    config = tiny_student(
        epochs=3,
        class_balanced=True,
        accumulate=2,
        ema={"decay": 0.9},
        schedule="cosine",
        warmup_steps=3,
        checkpoint_every_steps=2,
    )
    out = tmp_path_factory.mktemp("straight")
    train(config, made_root, out)
    found = losses(out)
    assert len(found) == 12
    return Straight(config=config, losses=found)


def changed(config: StudentConfig, **training: object) -> StudentConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


@pytest.mark.parametrize("epochs", [1, 3], ids=["of the first epoch", "of the last"])
def test_a_signal_at_an_epochs_last_step_stops_before_its_validation(
    straight: Straight, made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    real, step = BevDetector.losses, epochs * straight.steps_per_epoch
    calls = 0

    def signalled(self: BevDetector, output: object, batch: object) -> dict:
        nonlocal calls
        calls += 1
        if calls == 2 * step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, output, batch)

    monkeypatch.setattr(BevDetector, "losses", signalled)
    config = changed(straight.config, validate_every=1)
    with pytest.raises(StoppedError, match=rf"after step {step}, checkpoint .*last.ckpt\). Go on with --resume"):
        train(config, made_root, tmp_path)
    assert max(losses(tmp_path)) == step - 1
    assert saved(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == step
    train(config, made_root, tmp_path, resume=True)
    straight.assert_equal(tmp_path)
    assert (tmp_path / "validation" / "epoch001").exists()
    assert (tmp_path / "validation" / "epoch003").exists()


def test_a_signal_while_validating_costs_the_validation_alone(
    straight: Straight, made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(self: BevDetector, output: object) -> list:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, output)

    real = BevDetector.detect
    config = changed(straight.config, validate_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(BevDetector, "detect", signalled)
        with pytest.raises(StoppedError, match=f"after step {straight.steps_per_epoch},"):
            train(config, made_root, tmp_path)
    assert not (tmp_path / "validation" / "epoch001").exists()
    train(config, made_root, tmp_path, resume=True)
    straight.assert_equal(tmp_path)
    assert (tmp_path / "validation" / "epoch001").exists()


def test_a_step_that_does_not_end_does_not_hold_a_signal_up(
    made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(*_: object) -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError("the step ended")

    monkeypatch.setattr(BevDetector, "losses", waits)
    monkeypatch.setattr(checkpointing, "LEAST_GRACE_S", 0.2)
    with pytest.raises(
        StoppedError, match=r"within a step that did not end in 0 s .*got no checkpoint yet. Start it ag"
    ):
        train(tiny_student(), made_root, tmp_path)


# Real processes.


def begin(config: StudentConfig, world: Path, out: Path, *options: str) -> CliProcess:
    """Start a training as a user would."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return start_cli(out.parent, "train-student", path, "--data", world, "--out", out, *options)


def begin_group(
    config: StudentConfig, world: Path, out: Path, *options: str, launcher: tuple[object, ...] = ()
) -> subprocess.Popen:
    """Start a training on several devices in a process group of its own; by default it starts the others itself."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    arguments = ["train-student", path, "--data", world, "--out", out, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, [sys.executable, "-m", *launcher, "cli", *arguments])),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def begin_nodes(config: StudentConfig, world: Path, out: Path, *options: str) -> list[subprocess.Popen]:
    """Start a training with torchrun, as on `training.nodes` machines, all of them this one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = ("--nnodes", config.training.nodes, "--nproc-per-node", config.training.devices)
    meeting = ("--master-addr", "127.0.0.1", "--master-port", port)
    return [
        begin_group(config, world, out, *options, launcher=(*TORCHRUN, *nodes, *meeting, "--node-rank", rank, "-m"))
        for rank in range(config.training.nodes)
    ]


TORCHRUN = ("torch.distributed.run",)


def test_a_killed_training_goes_on_as_if_nothing_had_been(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = begin(straight.config, made_root, out, "--set", "data.workers=1")
    process.wait_until(lambda: straight.steps_per_epoch + 1 in losses(out))
    process.signal(signal.SIGKILL)
    assert process.wait(60)[0] == -signal.SIGKILL
    assert len(losses(out)) < len(straight.losses)
    done = saved(out / "checkpoints" / "last.ckpt")["global_step"]
    assert straight.steps_per_epoch < done < len(straight.losses)
    train(straight.config, made_root, out, resume=True)
    straight.assert_equal(out)


def test_a_terminated_training_says_how_to_go_on(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    config, out = changed(straight.config, checkpoint_every_steps=None), tmp_path / "run"
    process = begin(config, made_root, out, "--set", "data.workers=1")
    process.wait_until(lambda: 1 in losses(out))
    assert not (out / "checkpoints").exists()
    process.signal(signal.SIGTERM)
    code, _, complaint = process.wait(120)
    assert code == 143, complaint
    assert "Traceback" not in complaint
    done = saved(out / "checkpoints" / "last.ckpt")["global_step"]
    assert f"the training was stopped (after step {done}, checkpoint {out}/checkpoints/last.ckpt)" in complaint
    assert complaint.rstrip().endswith("Go on with --resume.")
    train(config, made_root, out, resume=True)
    straight.assert_equal(out)


def test_a_training_whose_log_is_gone_says_so_and_ends(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = begin(changed(straight.config, epochs=200), made_root, out, "--set", "data.workers=1")
    process.wait_until(lambda: 1 in losses(out))
    (out / "csv").rename(tmp_path / "gone")
    code, _, complaint = process.wait(60)
    assert code == 1, complaint
    assert f"the system refused ({out}/csv/metrics.csv); got No such file or directory" in complaint


def test_two_devices_equal_one(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    # Their batches of one are the batches of one that a single device accumulates.
    out = tmp_path / "run"
    process = begin_group(changed(straight.config, devices=2, accumulate=1), made_root, out)
    told, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert told.count("checkpoint: ") == 1
    straight.assert_equal(out)


def test_two_nodes_equal_one(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = begin_nodes(changed(straight.config, nodes=2, accumulate=1), made_root, out)
    (printed, complaint), (silence, other) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], complaint + other
    assert "checkpoint: " in printed and "checkpoint: " not in silence
    straight.assert_equal(out)


@pytest.mark.long
def test_a_killed_node_ends_the_others_which_go_on_as_fewer(
    straight: Straight, made_root: Path, tmp_path: Path
) -> None:
    config, out = changed(straight.config, nodes=2, accumulate=1), tmp_path / "run"
    first, second = begin_nodes(config, made_root, out)
    while straight.steps_per_epoch + 1 not in losses(out):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    for process in (*psutil.Process(second.pid).children(recursive=True), second):
        process.kill()
    _, complaint = first.communicate(timeout=240)
    assert first.returncode == 1
    assert "the process of another device or node has ended. See its own message; go on with --resume." in complaint
    assert "this is a bug" not in complaint
    done = saved(out / "checkpoints" / "last.ckpt")["global_step"]
    assert straight.steps_per_epoch < done < len(straight.losses)
    with pytest.raises(ConfigError, match=r"a step of the run has another number of samples .* got 1; expected 2. Ch"):
        train(changed(straight.config, accumulate=1), made_root, out, resume=True)
    train(straight.config, made_root, out, resume=True)
    straight.assert_equal(out)


@pytest.mark.long
def test_a_device_that_fails_is_heard_and_ends_the_others(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    world = Path(shutil.copytree(made_root, tmp_path / "world"))
    images = sorted((world / "samples" / "CAM_BACK").iterdir())
    for image in images:
        image.unlink()
    process = begin_group(changed(straight.config, devices=2, accumulate=1), world, tmp_path / "run")
    _, complaint = process.communicate(timeout=120)
    assert process.returncode in (1, -signal.SIGKILL), complaint
    assert "DataError: a camera image is missing" in complaint
    assert "this is a bug" not in complaint


@pytest.mark.long
def test_two_devices_interrupted_and_resumed_equal_one(straight: Straight, made_root: Path, tmp_path: Path) -> None:
    config, out = changed(straight.config, devices=2, accumulate=1), tmp_path / "run"
    process = begin_group(config, made_root, out, "--set", "data.workers=1")
    while straight.steps_per_epoch not in losses(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    assert complaint.count("Go on with --resume.") == 1
    assert "Traceback" not in complaint
    again = begin_group(config, made_root, out, "--resume")
    _, complaint = again.communicate(timeout=240)
    assert again.returncode == 0, complaint
    straight.assert_equal(out)
