"""Whole trainings in real processes, on machines that lack something or are started otherwise than configured."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from cache.errors import ConfigError
from cache.nuscenes import loader
from student.training.trainer import train_student
from tests.factories.processes import CliProcess, start_cli
from tests.factories.students import tiny_student

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The configuration of a training that does not end by itself."""
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(tiny_student(epochs=500).model_dump(mode="json")))
    return path


def begin(student: Path, world: Path, *options: object, **environment: str) -> CliProcess:
    run = ("--data", world, "--out", student.parent / "run", *options)
    return start_cli(student.parent, "train-student", student, *run, environment=environment)


def workers_of(process: CliProcess) -> list[psutil.Process]:
    return psutil.Process(process.process.pid).children()


def test_a_killed_worker_ends_the_training_with_cause_and_cure(student: Path, made_root: Path) -> None:
    process = begin(student, made_root, "--set", "data.workers=2")
    process.wait_until(lambda: "\nsteps 1/" in "\n" + process.stderr.read_text())
    workers_of(process)[0].send_signal(signal.SIGKILL)
    code, told, complaint = process.wait(60)
    assert (code, told) == (1, ""), complaint
    error = complaint.splitlines()[-1]
    assert error.startswith("error: OfflineDistillError: a loader worker was killed; got DataLoader worker (pid")
    assert error.endswith("lower the number of workers or batch_size, or give it more memory.")
    assert "Traceback" not in complaint


@pytest.mark.long
def test_a_stopped_worker_does_not_hold_sigterm_up(student: Path, made_root: Path) -> None:
    """No step ends, since no batch arrives; the run ends 20 s later, and within what a step has taken twice."""
    process = begin(student, made_root, "--set", "data.workers=1")
    process.wait_until(lambda: "\nsteps 1/" in "\n" + process.stderr.read_text())
    (worker,) = workers_of(process)
    worker.suspend()
    process.signal(signal.SIGTERM)
    code, _, complaint = process.wait(100)
    assert code == 143, complaint
    assert "Traceback" not in complaint
    assert not worker.is_running()


def test_little_shared_memory_is_named_before_the_first_step(
    made_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    little = SimpleNamespace(free=100_000)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda of: little if of == loader.SHARED_MEMORY else usage(of))
    config = tiny_student()
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 2})})
    message = (
        r"need more shared memory than there is \(/dev/shm\); got 0.1 MB free; expected .* batches .*--shm-size=8g"
    )
    with pytest.raises(ConfigError, match=message):
        train_student(config, made_root, [], tmp_path / "run")
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("environment", "devices", "message"),
    [
        ({"SLURM_NTASKS": "4"}, 1, "got 4 on 1 by SLURM, 1 on 1 by the configuration"),
        ({"SLURM_NTASKS": "1"}, 2, "got 1 on 1 by SLURM, 2 on 1 by the configuration"),
        ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, 2, "got 2 on 2 by SLURM, 2 on 1 by the configuration"),
    ],
)
def test_slurm_and_the_configuration_disagree(
    student: Path, made_root: Path, environment: dict[str, str], devices: int, message: str
) -> None:
    process = begin(student, made_root, "--set", f"training.devices={devices}", **environment, SLURM_JOB_NAME="train")
    code, told, complaint = process.wait(60)
    assert (code, told) == (1, ""), complaint
    assert complaint.count("\n") == 1
    assert complaint.startswith("error: ConfigError: the launcher and the configuration start different numbers of pro")
    assert message in complaint
    assert not (student.parent / "run").exists()


@pytest.mark.long
def test_torchrun_and_the_configuration_disagree(student: Path, made_root: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli")
    training = ("train-student", student, "--data", made_root, "--out", student.parent / "run")
    command = [sys.executable, *launcher, *map(str, training), "--set", "training.devices=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 2
    for error in errors:
        assert "got 2 on 1 by torchrun, 1 on 1 by the configuration" in error
        assert "Set training.devices=2 training.nodes=1, or start torchrun with --nnodes 1 --nproc-per-node 1" in error
    assert "this is a bug" not in done.stderr
    assert not (student.parent / "run").exists()
