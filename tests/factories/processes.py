"""Commands of the `cli` in processes that start at once: a server imports the libraries and forks for each.

The server is a fresh interpreter, so its children are as clean as a user's process: output is not captured, types are
not checked, no GPU is in use.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["cache.teacher.mmdet3d", "mmdet3d.models", "student.training.trainer"])


@dataclass(frozen=True, kw_only=True)
class CliProcess:
    """A running command and the files that its output goes to."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as the condition holds, which must be before the command ends."""
        while not condition():
            assert self.process.is_alive(), self.stderr.read_text()
            time.sleep(0.02)

    def wait(self, timeout_s: float) -> tuple[int | None, str, str]:
        """Wait for the end; returns the exit code (negative: killed by that signal), and what was printed."""
        self.process.join(timeout_s)
        return self.process.exitcode, self.stdout.read_text(), self.stderr.read_text()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start_cli(folder: Path, *arguments: object, environment: Mapping[str, str] | None = None) -> CliProcess:
    """Start a command; its output goes to two new files in `folder`.

    Args:
        environment: variables beside the server's.
    """
    number = len(list(folder.glob("stdout*")))
    stdout, stderr = folder / f"stdout{number}", folder / f"stderr{number}"
    stdout.touch()
    stderr.touch()
    process = SERVER.Process(target=_run_cli, args=(tuple(map(str, arguments)), stdout, stderr, environment or {}))
    process.start()
    return CliProcess(process=process, stdout=stdout, stderr=stderr)


def _run_cli(arguments: tuple[str, ...], stdout: Path, stderr: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a forkserver, or a shell's background, ignores
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    sys.argv = ["cli", *arguments]
    import cli

    cli.main()
