import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache.errors import ConfigError, UnsealedError
from cache.terminal.errors import Terminated, exit_codes


def end_of(capsys, error: BaseException, debug: bool = False) -> tuple[int, str]:
    """The exit code and the message that an error ends with."""
    with pytest.raises(SystemExit) as end, exit_codes(debug):
        raise error
    return end.value.code, capsys.readouterr().err


def test_an_error_of_the_project_is_one_line(capsys):
    code, message = end_of(capsys, ConfigError("unknown key", where="[a]", cure="Mend it"))
    assert (code, message) == (1, "error: ConfigError: unknown key ([a]). Mend it.\n")


def test_a_bug_is_one_line_and_its_traceback_is_kept(capsys):
    code, message = end_of(capsys, ZeroDivisionError("by zero"))
    assert code == 1
    assert "this is a bug (test_errors.py, line " in message
    assert "got ZeroDivisionError: by zero" in message
    assert "Traceback" not in message
    kept = Path(re.search(r"traceback is in (\S+);", message)[1])
    assert "ZeroDivisionError: by zero" in kept.read_text()
    kept.unlink()


@pytest.mark.parametrize("error", [ConfigError("unknown key"), KeyError("x")])
def test_debug_shows_the_traceback(capsys, error):
    _, message = end_of(capsys, error, debug=True)
    assert "Traceback (most recent call last)" in message
    assert "error: " in message


def test_a_full_disk_is_not_a_bug(capsys):
    code, message = end_of(capsys, OSError(28, "No space left on device", "a/store"))
    assert code == 1
    assert "the system refused (a/store); got No space left on device" in message


@pytest.mark.parametrize("kind", [MemoryError, type("OutOfMemoryError", (RuntimeError,), {})])
def test_full_memory_is_not_a_bug(capsys, kind):
    code, message = end_of(capsys, kind("CUDA out of memory.\nMore text"))
    assert code == 1
    assert "the memory is full; got CUDA out of memory.. Lower batch_size" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(24, "Too many open files", "x"),
            "too many files are open; got [Errno 24] Too many open files",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "the memory is full; got",
        ),
        (
            RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"),
            "shared memory is full; ",
        ),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "),
            "a loader worker was killed; got Data",
        ),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Lower batch_size"),
    ],
)
def test_what_a_machine_lacks_is_not_a_bug(capsys, error, message):
    code, complaint = end_of(capsys, error)
    assert code == 1
    assert message in complaint
    assert "bug" not in complaint


def test_an_interruption_has_its_own_code(capsys):
    assert end_of(capsys, KeyboardInterrupt()) == (130, "interrupted\n")
    assert end_of(capsys, Terminated()) == (143, "terminated\n")


@pytest.mark.parametrize(("kind", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interruption_is_known_by_whatever_it_became(capsys, kind, code):
    with pytest.raises(SystemExit) as end, exit_codes():
        try:
            raise kind
        except KeyboardInterrupt:
            raise UnsealedError("the dump was interrupted") from None
    assert end.value.code == code
    assert capsys.readouterr().err == "error: UnsealedError: the dump was interrupted\n"
    with pytest.raises(SystemExit) as end, exit_codes():
        try:
            raise kind
        except KeyboardInterrupt:
            sys.exit(1)
    assert end.value.code == code


def test_an_end_on_purpose_passes(capsys):
    with pytest.raises(SystemExit) as end, exit_codes():
        sys.exit(3)
    assert end.value.code == 3
    assert capsys.readouterr().err == ""


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with exit_codes():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


PROGRAM = """
import multiprocessing, time
from cache.terminal.errors import exit_codes
with exit_codes():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")]
)
def test_real_signals_end_a_process_and_its_workers(number, code, message):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # A shell makes background processes ignore SIGINT, and tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == code
    assert complaint == message
