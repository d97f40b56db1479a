"""Mapping of exceptions to messages and exit codes.

0 success; 1 an error, or damage that `verify` found; 2 an invalid command line (from typer); 130 interrupted
(Ctrl-C); 143 terminated (SIGTERM).
"""

import errno
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cache.errors import OfflineDistillError, OfflineDistillWarning
from cache.terminal.console import printable, stderr


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as an interruption so that the same clean-up runs."""


@contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Turn an exception that ends a command into one message on stderr and the documented exit code.

    Args:
        debug: Print tracebacks. Otherwise this project's errors have none, and a bug's is kept in a file.
    """
    before = signal.signal(signal.SIGTERM, _sigterm_handler(os.getpid()))
    try:
        with _plain_warnings():
            yield
    except BaseException as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises there for each loader worker that dies with us
        interruption = _interruption(error)
        if interruption is None and (isinstance(error, SystemExit | BrokenPipeError) or hasattr(error, "exit_code")):
            raise  # typer's own, and sys.exit
        if debug:
            traceback.print_exception(error)
        _print_error(error, interruption)
        code = 1 if interruption is None else 143 if isinstance(interruption, Terminated) else 130
        raise SystemExit(code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print an OfflineDistillWarning as a line on stderr, without the line of code that issued it."""
    with warnings.catch_warnings():
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, OfflineDistillWarning):
                stderr.print("[bold yellow]warning:[/]", end=" ")
                stderr.print(printable(str(message)), soft_wrap=True, highlight=False, markup=False)
            else:
                default(printable(str(message)), category, *place, **more)

        warnings.showwarning = show
        yield


def _sigterm_handler(process: int) -> Callable[[int, FrameType | None], None]:
    """The handler of SIGTERM in a process; its loader workers, which inherit it, exit at once."""

    def handle(_: int, __: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(143)
        raise Terminated

    return handle


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that caused an error; libraries wrap it in errors and exits of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _print_error(error: BaseException, interruption: KeyboardInterrupt | None) -> None:
    if interruption is not None and not isinstance(error, OfflineDistillError):
        stderr.print("[bold red]terminated[/]" if isinstance(interruption, Terminated) else "[bold red]interrupted[/]")
        return
    ours = error if isinstance(error, OfflineDistillError) else _converted(error)
    stderr.print(f"[bold red]error:[/] {type(ours).__name__}:", end=" ")
    stderr.print(printable(str(ours)), soft_wrap=True, highlight=False, markup=False)


def machine_error(error: BaseException) -> OfflineDistillError | None:
    """What a machine lacks, as an OfflineDistillError; None where the error is another."""
    text = str(error).partition("\n")[0]
    for what, (texts, cure) in _LACKS.items():
        if isinstance(error, OSError | RuntimeError) and any(part in str(error) for part in texts):
            return OfflineDistillError(what, got=text.rstrip(". "), cure=cure)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OfflineDistillError("the memory is full", got=text or None, cure=_LESS_MEMORY)
    if isinstance(error, OSError):
        memory = error.errno in (errno.ENOMEM, errno.EAGAIN)
        return OfflineDistillError(
            "the system refused",
            where=error.filename,
            got=error.strerror or text,
            cure=_LESS_MEMORY if memory else "Check the path, its permissions and the free space on its disk",
        )
    return None


WORKER_KILLED = "a loader worker was killed"

_LESS_MEMORY = "Lower batch_size (--set batch_size=1, or --set training.batch_size=1), or give it a larger machine"

_LACKS = {
    "too many files are open": (
        ("Too many open files",),
        "Raise the limit, such as with `ulimit -n 4096`, or lower the number of workers and batch_size",
    ),
    "shared memory is full": (
        ("shared memory", "</torch_", "Bus error"),
        "Give /dev/shm more (docker run --shm-size=8g, or --ipc=host), or lower the number of workers or batch_size",
    ),
    WORKER_KILLED: (
        ("DataLoader worker (pid",),
        "Where the machine's memory is full the system kills processes (`dmesg` says so): lower the number of workers "
        "or batch_size, or give it more memory",
    ),
    "the memory is full": (
        ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"),
        _LESS_MEMORY,
    ),
}
"""What a machine lacks, by what torch and the system say of it: they have no class of error for it."""


def _converted(error: BaseException) -> OfflineDistillError:
    """A machine's error or a bug as an OfflineDistillError."""
    known = machine_error(error)
    if known is not None:
        return known
    descriptor, path = tempfile.mkstemp(prefix="offline-distillbev-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return OfflineDistillError(
        "this is a bug",
        where=_place(error),
        got=f"{type(error).__name__}: {error}",
        cure=f"Its traceback is in {path}; cli --debug prints it",
    )


def _place(error: BaseException) -> str:
    """The file and line that raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"
