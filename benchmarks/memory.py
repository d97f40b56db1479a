"""Peak memory: resident memory of this process on a CPU, allocated memory on a GPU."""

import ctypes
from pathlib import Path

import torch


def reset_peak(device: str) -> int:
    """Count the peak anew, from the bytes that are in use now, which come back."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # glibc keeps what is freed: a peak within that would not be seen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes(device: str) -> int:
    """The peak since the process began or since it was reset."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
