"""Output of a command, on a terminal, in a log file and as JSON: reports on stdout, progress and errors on stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.protocol import is_renderable

from cache.errors import OfflineDistillError

LINE_EVERY_S = 5.0
"""Time between two lines of progress where stderr is no terminal."""

# rich honours NO_COLOR and FORCE_COLOR.
stdout, stderr = Console(), Console(stderr=True)


def examples(*commands: str) -> str:
    """The epilog of a command's help: one line for each example."""
    return "\n\n".join(("Examples:", *commands)).replace("[", r"\[")


def print_report(report: Any) -> None:
    """Print text, neither wrapped nor coloured, or a table, folded only where a screen limits its width."""
    if isinstance(report, str) or not is_renderable(report):
        stdout.print(str(report), soft_wrap=True, highlight=False, markup=False)
    elif stdout.is_terminal or "COLUMNS" in os.environ:
        stdout.print(report)
    else:
        unlimited = stdout.options.update(max_width=10_000)
        Console(width=stdout.measure(report, options=unlimited).maximum).print(report)


def print_note(text: str) -> None:
    """Print one line to stderr."""
    stderr.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def report_writer(as_json: bool) -> Iterator[Callable[..., None]]:
    """A function that writes a report to stdout: (report, *text), where text and tables replace the report's str.

    With `as_json` stdout gets the report's fields as one JSON object and nothing else: what libraries print meanwhile
    goes to stderr. A number that is not finite is null; an error has its parts and its `type`.
    """
    output = sys.stdout

    def write(report: object, *text: object) -> None:
        if as_json:
            output.write(to_json(report, indent=2, inf_nan_mode="null", fallback=_error_fields).decode() + "\n")
            return
        for part in text or (report,):
            print_report(part)

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield write


def _error_fields(value: object) -> dict[str, Any]:
    if not isinstance(value, OfflineDistillError):
        raise TypeError(f"a report holds a {type(value).__name__}, which JSON cannot represent")
    parts = {name: None if part is None else str(part) for name, part in vars(value).items()}
    return {"type": type(value).__name__, **parts}


@contextmanager
def progress(unit: str) -> Iterator[Callable[..., None]]:
    """A function that shows progress, (done, total, remark=""): a bar on a terminal, lines elsewhere."""
    if not stderr.file.isatty():
        yield _Lines(unit=unit, began=time.monotonic())
        return
    remark = TextColumn("{task.fields[remark]}")
    with Progress(
        TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), remark, console=stderr
    ) as bar:
        task = bar.add_task(unit, total=None, remark="")
        yield lambda done, total, remark="": bar.update(task, completed=done, total=total, remark=remark)


@dataclass(kw_only=True)
class _Lines:
    """Progress in lines: the first step, then one every few seconds, and the last."""

    unit: str
    began: float
    printed: float | None = None

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        now = time.monotonic()
        if self.printed is not None and done < total and now - self.printed < LINE_EVERY_S:
            return
        self.printed = now
        left = duration((now - self.began) / done * (total - done)) if done else "?"
        parts = f"{self.unit} {done}/{total}", f"{left} left" if done < total else duration(now - self.began), remark
        stderr.print(", ".join(filter(None, parts)), soft_wrap=True, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
