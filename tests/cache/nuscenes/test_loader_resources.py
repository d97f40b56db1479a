"""Workers that die, or cannot hand over what they loaded, in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cache.errors import ConfigError
from cache.nuscenes import loader
from cache.nuscenes.loader import require_open_files, require_shared_memory, shared_bytes

ROOT = Path(__file__).parents[3]

PROGRAM = """
import os, sys, time
import torch
from cache.nuscenes.loader import Loader
from cache.terminal.errors import exit_codes

class Tensors(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if sys.argv[1] == "killed" and index == 9:
            os.kill(os.getpid(), 9)
        if sys.argv[1] == "hangs" and index == 9:
            print("hangs", flush=True)
            time.sleep(600)
        return [torch.zeros(200_000, dtype=torch.uint8) for _ in range(4)]

def ignore(_):
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

with exit_codes():
    for batch in Loader(Tensors(), collate_fn=list, num_workers=2, worker_init_fn=ignore):
        if sys.argv[1] == "keeps":
            kept = [*globals().get("kept", ()), batch]
"""


def run(*before: str, what: str) -> tuple[int, str, float]:
    """Run the program; returns its exit code, its complaint and the seconds that it took."""
    began = time.monotonic()
    command = [*before, sys.executable, "-c", PROGRAM, what]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr, time.monotonic() - began


def test_a_killed_worker_ends_the_run_with_the_cause() -> None:
    code, complaint, _ = run(what="killed")
    assert code == 1
    assert complaint.startswith("error: OfflineDistillError: a loader worker was killed; got DataLoader worker (pid")
    assert complaint.count("\n") == 1


def test_open_files_that_run_out_end_the_run() -> None:
    code, complaint, _ = run("bash", "-c", 'ulimit -n 64; exec "$@"', "-", what="keeps")
    assert code == 1, complaint
    assert "error: OfflineDistillError: too many files are open; got " in complaint
    assert "Raise the limit, such as with `ulimit -n 4096`" in complaint


def test_full_shared_memory_ends_the_run() -> None:
    small = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "-")
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    code, complaint, _ = run(*small, what="keeps")
    assert code == 1, complaint
    assert "error: OfflineDistillError: shared memory is full; got " in complaint
    assert "--shm-size" in complaint


def test_sigterm_is_honoured_while_a_worker_hangs() -> None:
    command = [sys.executable, "-c", PROGRAM, "hangs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 143
    assert complaint.endswith("terminated\n")


def test_shared_memory_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    require_shared_memory(1000, 10)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=64_000_000))
    require_shared_memory(6_400_000, 10)
    with pytest.raises(ConfigError) as caught:
        require_shared_memory(6_400_000, 10, processes=2)
    assert str(caught.value).startswith(
        "the loader's workers need more shared memory than there is (/dev/shm); got 64.0 MB free; "
        "expected 128.0 MB: 20 batches of 6.4 MB. Give it more (docker run --shm-size=8g"
    )


def test_each_tensor_takes_whole_pages() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert shared_bytes([torch.zeros(1), torch.zeros(page), torch.zeros(0)]) == page + 4 * page


def test_open_files_are_allowed_as_far_as_the_system_lets(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[tuple[int, int]] = []
    monkeypatch.setattr(loader.resource, "getrlimit", lambda _: (256, 512))
    monkeypatch.setattr(loader.resource, "setrlimit", lambda _, limits: allowed.append(limits))
    require_open_files(10, 12)  # 128 + 120
    assert not allowed
    require_open_files(20, 12)
    assert allowed == [(368, 512)]
    with pytest.raises(ConfigError, match=r"ulimit -n\); got 512; expected 608: 40 tensors in each of 12 batches"):
        require_open_files(40, 12)
