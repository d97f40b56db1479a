"""Which operations a step's time goes to: a table, no trace."""

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.names import KINDS, PRECISIONS
from benchmarks.gpu.part import Figures, Job
from benchmarks.gpu.step import Training

ROWS = 25


def measure(job: Job) -> Figures:
    """The operations of three steps by their own time, in both precisions, from the store and without a teacher."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if job.on_gpu else [])]
    for precision in PRECISIONS:
        for kind in KINDS[:2]:
            training = Training(job, kind, precision)
            batch = training.batch(job.sizes.batch)
            for _ in range(2):
                training.step(batch)
            with profile(activities=activities) as found:
                for _ in range(3):
                    training.step(batch)
                job.synchronise()
            yield f"{kind}, {precision}", _rows(job, found)
            del training, batch
            if job.on_gpu:
                torch.cuda.empty_cache()


def _rows(job: Job, found: profile) -> list[dict[str, float | int | str]]:
    """The operations that take the most time on the device (on a CPU: of the CPU) themselves, in ms a step."""
    field = "self_device_time_total" if job.on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: getattr(event, field), reverse=True)
    return [
        {"operation": event.key[:120], "calls": event.count // 3, "ms": getattr(event, field) / 3e3}
        for event in events[:ROWS]
    ]
