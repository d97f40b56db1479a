"""CPU threads of a command: one for each core that is free when it starts.

torch starts a thread for every core, and each operation waits for the slowest. Where other processes use some of the
cores, fewer threads are faster.
"""

import os
from collections.abc import MutableMapping

import psutil

VARIABLE = "OMP_NUM_THREADS"
"""Threads of a process, read once: by OpenMP, when torch is imported, and by the processes that it starts."""


def use_free_cores(environment: MutableMapping[str, str] = os.environ, interval_s: float = 0.3) -> None:
    """Set OMP_NUM_THREADS to the number of free cores where some are in use; to be called before torch is imported.

    A number that is set already stays, and on an idle machine torch's own default.

    Args:
        interval_s: time to measure the cores' use, spent waiting.
    """
    if VARIABLE in environment:
        return
    idle = free_cores(interval_s)
    if round(sum(idle)) < len(idle):
        environment[VARIABLE] = str(max(1, min(round(sum(idle)), psutil.cpu_count(logical=False) or len(idle))))


def free_cores(interval_s: float) -> list[float]:
    """The idle share of each core that this process may run on, 0 .. 1."""
    used = psutil.cpu_percent(interval_s, percpu=True)
    return [1 - used[core] / 100 for core in os.sched_getaffinity(0)]
