"""Real processes that run real dumps, killed, raced and started by torchrun."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.crash import committed, contents, dump_arguments, kill_dumps
from cache.dumping.run import dump
from cache.store.partition import Part
from tests.factories.processes import start_cli
from tests.factories.stores import SmallFrames, SmallTeacher, dump_in_process, make_config

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

COUNT = 40
KILLS = 20


@pytest.fixture
def frames(tmp_path):
    return SmallFrames(root=tmp_path / "points", count=COUNT)


@pytest.fixture
def whole(frames, tmp_path) -> dict[str, bytes]:
    """The bytes of an uninterrupted dump."""
    process = dump_in_process(frames, tmp_path / "whole.zarr")
    process.join()
    assert process.exitcode == 0
    return contents(tmp_path / "whole.zarr")


def test_killed_at_random_moments_a_dump_loses_nothing(frames, tmp_path):
    outcome = kill_dumps(partial(dump_in_process, frames), tmp_path, KILLS)
    assert outcome.killed == KILLS
    assert (outcome.lost, outcome.different) == (0, 0)


def test_the_command_itself_loses_nothing_when_it_is_killed(made_root, tmp_path):
    pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed (make setup)")
    outcome = kill_dumps(lambda path: start_cli(tmp_path, *dump_arguments(made_root, path)).process, tmp_path, kills=1)
    assert outcome.killed == 1
    assert (outcome.lost, outcome.different) == (0, 0)


def test_a_killed_dump_with_workers_is_resumed_at_once(frames, whole, tmp_path):
    path = tmp_path / "teacher.zarr"
    process = dump_in_process(frames, path, workers=1)
    while not committed(path):
        time.sleep(0.01)
    process.kill()
    process.join()
    dump(make_config(), frames, SmallTeacher(), path)
    assert contents(path) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupt_stops_cleanly(frames, whole, tmp_path, workers):
    path = tmp_path / "teacher.zarr"
    process = dump_in_process(frames, path, workers=workers)
    while not committed(path):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    if process.exitcode:  # otherwise it had finished before
        assert committed(path)
        assert not list(path.rglob("*.partial"))
    dump(make_config(), frames, SmallTeacher(), path)
    assert contents(path) == whole


@pytest.mark.parametrize("count", [2, 4])
def test_parts_that_run_at_once_fill_one_store(frames, whole, tmp_path, count):
    path = tmp_path / "teacher.zarr"
    parts = [dump_in_process(frames, path, part=Part(index=index, count=count)) for index in range(count)]
    for process in parts:
        process.join()
    assert [process.exitcode for process in parts] == [0] * count
    assert contents(path) == whole


def test_shards_of_a_crashed_part_are_taken_up(frames, whole, tmp_path):
    path = tmp_path / "teacher.zarr"
    first, second = (dump_in_process(frames, path, part=Part(index=index, count=2)) for index in range(2))
    first.kill()
    second.join()
    first.join()
    assert second.exitcode == 0
    report = dump(make_config(), frames, SmallTeacher(), path)
    assert report.written >= 1
    assert report.sealed
    assert contents(path) == whole


@pytest.mark.long
def test_torchrun(frames, whole, tmp_path):
    path = tmp_path / "teacher.zarr"
    root = str(Path(__file__).parents[3])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.factories.small_dump",
    ]
    subprocess.run(
        [*command, tmp_path / "points", path, str(COUNT)],
        env={**os.environ, "PYTHONPATH": root},
        check=True,
        capture_output=True,
    )
    assert contents(path) == whole
