import json
import math
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.errors import CorruptStoreError
from cache.terminal import console
from cache.terminal.console import duration, examples, print_report, printable, progress, report_writer
from cache.visualization.tables import Table

TABLE = Table(title="long", columns=("a", "b"), rows=(("x" * 90, "y" * 90),))


@dataclass(frozen=True)
class Report:
    path: Path
    ratio: float
    faults: tuple[CorruptStoreError, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: [bold] {self.ratio}"


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True, timeout=60
    )


def test_a_report_is_printed_as_it_is(capsys):
    with report_writer(as_json=False) as write:
        write(Report(Path("a" * 200), 0.5))
    assert capsys.readouterr().out == f"{'a' * 200}: [bold] 0.5\n"


def test_a_machine_gets_json_and_nothing_else(capsys):
    fault = CorruptStoreError("broken", where=Path("a/b"), got=3, cure="Mend it")
    with report_writer(as_json=True) as write:
        sys.stdout.write("a library's remark\n")
        write(Report(Path("a/b"), math.nan, (fault,)), "the text")
    printed = capsys.readouterr()
    fields = {"what": "broken", "where": "a/b", "got": "3", "expected": None, "cure": "Mend it"}
    assert json.loads(printed.out) == {
        "path": "a/b",
        "ratio": None,
        "faults": [{"type": "CorruptStoreError", **fields}],
    }
    assert printed.err == "a library's remark\n"


def test_what_json_cannot_represent_is_refused():
    with report_writer(as_json=True) as write, pytest.raises(ValueError, match="a report holds a object"):
        write(Report(object(), 0.0))


def test_a_table_in_a_file_is_not_folded(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_report(TABLE)
    assert f"{'x' * 90} │ {'y' * 90}" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "100")
    print_report(TABLE)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 100


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 16.0, 17.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with progress("samples") as advance:
        for done in (1, 2, 3, 4):
            advance(done, 5, f"loss {done}")
        advance(5, 5)
    assert capsys.readouterr().err.splitlines() == [
        "samples 1/5, 40 s left, loss 1",
        "samples 3/5, 11 s left, loss 3",
        "samples 5/5, 20 s",
    ]


def test_progress_on_a_terminal_is_a_bar():
    program = "from cache.terminal.console import progress\nwith progress('samples') as advance: advance(3, 3, 'done')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, timeout=60, env=os.environ | {"TERM": "xterm"})
    shown = os.read(ours, 100_000).decode()
    assert "\x1b[" in shown
    assert "━" in shown
    assert "3/3" in shown


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_where_they_are_wanted(environment, coloured):
    result = run("from cache.terminal.console import stderr; stderr.print('[red]x[/]')", TERM="xterm", **environment)
    assert ("\x1b[31m" in result.stderr) == coloured


def test_progress_in_a_log_is_plain_though_colours_are_forced():
    program = "from cache.terminal.console import progress\nwith progress('samples') as advance: advance(3, 3, 'done')"
    assert run(program, FORCE_COLOR="1").stderr == "samples 3/3, 0 s, done\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (130, "2 min 10 s"), (3600 * 30 + 61, "30 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_examples_are_lines_and_no_markup():
    assert examples("cli a", "cli b [c]") == "Examples:\n\ncli a\n\ncli b \\[c]"


HOSTILE = "a\x1b]0;owned\x07\x9b31m\u202e\ud800\nb"
SPELT = "a\\x1b]0;owned\\x07\\x9b31m\\u202e\\ud800\nb"


def test_control_characters_are_spelt_out(capsys):
    assert printable(HOSTILE) == SPELT
    print_report(HOSTILE)
    print_report(Table(title=HOSTILE, columns=(HOSTILE,), rows=((HOSTILE,),)))
    with report_writer(True) as write:
        write({"token": HOSTILE.replace("\ud800", "")})
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e")
    assert SPELT in out
    assert json.loads(out[out.rindex("{") :]) == {"token": HOSTILE.replace("\ud800", "")}
