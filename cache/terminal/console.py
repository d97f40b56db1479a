"""How a command talks, to a person at a terminal, to a log file, to a machine.

Reports go to stdout, progress and errors to stderr.
"""

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
"""Between two lines of progress where there is no terminal."""

# rich honours NO_COLOR and FORCE_COLOR.
stdout, stderr = Console(), Console(stderr=True)


def examples(*commands: str) -> str:
    """The end of a command's help: one line for each example."""
    return "\n\n".join(("Examples:", *commands)).replace("[", r"\[")


def say(what: Any) -> None:
    """Print a report: text neither wrapped nor coloured; a table folded only where a screen limits its width."""
    if isinstance(what, str) or not is_renderable(what):
        stdout.print(str(what), soft_wrap=True, highlight=False, markup=False)
    elif stdout.is_terminal or "COLUMNS" in os.environ:
        stdout.print(what)
    else:
        unlimited = stdout.options.update(max_width=10_000)
        Console(width=stdout.measure(what, options=unlimited).maximum).print(what)


@contextmanager
def answering(as_json: bool) -> Iterator[Callable[..., None]]:
    """Where a report goes: yields what is to be called with it, and with what a person sees of it, if not its str.

    With `as_json` stdout gets the report's fields as one JSON object and nothing else: what libraries print meanwhile
    goes to stderr. A number that is not finite is null; an error has its parts and its `type`.
    """
    machine = sys.stdout

    def answer(report: object, *shown: object) -> None:
        if as_json:
            machine.write(to_json(report, indent=2, inf_nan_mode="null", fallback=_plain).decode() + "\n")
            return
        for part in shown or (report,):
            say(part)

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield answer


def _plain(value: object) -> dict[str, Any]:
    if not isinstance(value, OfflineDistillError):
        raise TypeError(f"a report holds a {type(value).__name__}, which JSON cannot say")
    parts = {name: None if part is None else str(part) for name, part in vars(value).items()}
    return {"type": type(value).__name__, **parts}


@contextmanager
def progress(unit: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, lines elsewhere; yields what is to be called with (done, total) and perhaps a remark."""
    if not stderr.file.isatty():
        yield _Lines(unit=unit, began=time.monotonic())
        return
    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task(unit, total=None, remark="")
        yield lambda done, total, remark="": bar.update(task, completed=done, total=total, remark=remark)


@dataclass(kw_only=True)
class _Lines:
    """A line for the first step, then one every few seconds, and the last."""

    unit: str
    began: float
    said: float | None = None

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        now = time.monotonic()
        if self.said is not None and done < total and now - self.said < LINE_EVERY_S:
            return
        self.said = now
        left = duration((now - self.began) / done * (total - done)) if done else "?"
        parts = f"{self.unit} {done}/{total}", f"{left} left" if done < total else duration(now - self.began), remark
        stderr.print(", ".join(filter(None, parts)), soft_wrap=True, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Seconds, for a person: the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
