"""What this process takes of memory."""

from pathlib import Path

import torch


def peak_bytes(device: str) -> int:
    """The most that this process has had at once: CUDA memory allocated, or on a CPU resident memory.

    getrusage's figure would start with the peak of the process that started this one.
    """
    return torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A size from Linux's account of this process, such as VmRSS, what is resident now."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
