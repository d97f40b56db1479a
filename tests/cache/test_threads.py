import os
from collections.abc import Sequence

import psutil
import pytest

from cache.threads import free_cores, use_free_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Make the machine one whose cores are used to so many per cent, with half as many physical ones."""

    def make(used: Sequence[float], allowed: Sequence[int] = ()) -> None:
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: list(used))
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: len(used) if logical else len(used) // 2)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed or range(len(used))))

    return make


@pytest.mark.parametrize(
    ("used", "threads"),
    [
        ([0, 0, 4, 0], {}),
        ([100, 0, 0, 0], {"OMP_NUM_THREADS": "2"}),  # of three free cores, two are physical ones
        ([100, 100, 60, 10], {"OMP_NUM_THREADS": "1"}),
        ([100, 100, 100, 100], {"OMP_NUM_THREADS": "1"}),
    ],
)
def test_a_thread_for_each_free_core(machine, used: list[float], threads: dict[str, str]) -> None:
    machine(used)
    environment: dict[str, str] = {}
    use_free_cores(environment)
    assert environment == threads


def test_a_number_that_is_set_stays(machine) -> None:
    machine([100, 100])
    environment = {"OMP_NUM_THREADS": "7"}
    use_free_cores(environment)
    assert environment == {"OMP_NUM_THREADS": "7"}


def test_only_cores_that_the_process_may_use_count(machine) -> None:
    machine([25, 100, 100, 0], allowed=(0, 3))
    assert free_cores(0.0) == [0.75, 1.0]
