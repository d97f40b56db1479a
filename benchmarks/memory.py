"""Where a measurement of peak memory begins; `student.training.memory.peak_bytes` is where it ends."""

import ctypes
from pathlib import Path

import torch

from student.training.memory import status_bytes


def reset_peak(device: str) -> int:
    """Count the peak anew, from the bytes that are in use now, which come back."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # glibc keeps what is freed: a peak within that would not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")
