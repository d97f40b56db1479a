"""The tables of docs/speed.md that benchmarks.gpu fills, and how it runs its parts."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_tables
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu_tables import BEGIN, END, PAGE, UNKNOWN, Measured, fill

PAGE_TEXT = f"before\n{BEGIN}old\n{END}after\n"
MACHINE = {"device": "GPU 9", "device GB": 80, "cores": 16, "python": "3.12.3", "torch": "2.11.0", "numpy": "2.5.2"}
CONTENT = {
    "machine": MACHINE | {"measured": "2030-01-01"},
    "small": False,
    "parts": {
        "objective": {
            "error": None,
            "figures": {
                "mse_loss ms": 2.0,
                "plain ms": 3.0,
                "mse_loss beside compiled ms": 4.0,
                "plain, compiled ms": 3.0,
            },
        },
        "largest batch": {"error": None, "figures": {"store, 32-true, largest batch in 8 GiB": 3}},
        "dump": {"error": "exit code 1: Traceback\nRuntimeError: CUDA error", "figures": {}},
    },
}


def test_without_a_measurement_every_cell_says_so() -> None:
    page = fill(PAGE_TEXT, Measured({}))
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    cells = [cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]]
    values = [cell for cell in cells if any(sign.isdigit() for sign in cell)]
    heads = ("largest batch in 8 GiB", "largest batch in 12 GiB", "largest batch in 24 GiB", "float32", "bfloat16")
    assert UNKNOWN in cells and set(values) == set(heads)


def test_the_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if "No GPU has run this yet." in page:
        assert page == fill(page, Measured({}))


def test_figures_and_their_ratios() -> None:
    page = fill(PAGE_TEXT, Measured(CONTENT))
    assert "GPU 9 (80 GB), 16 cores, torch 2.11.0, numpy 2.5.2, Python 3.12.3, 2030-01-01." in page
    assert "The part `dump` failed: `RuntimeError: CUDA error`" in page
    assert f"| plain | 3 | 1.5 | {UNKNOWN} | {UNKNOWN} |" in page
    assert f"| plain, compiled | 3 | 0.75 | {UNKNOWN} | {UNKNOWN} |" in page
    assert f"| store, 32-true | {' | '.join([UNKNOWN] * 4)} | 3 | {UNKNOWN} | {UNKNOWN} |" in page


def test_a_rehearsal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(CONTENT | {"small": True}))
    monkeypatch.setattr(sys, "argv", ["gpu_tables", str(file), "--page", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit):
        gpu_tables.main()
    assert "is a rehearsal's" in capsys.readouterr().err


SAYS = 'open(sys.argv[1], "w").write(\'["rate", 3]\\n["machine", {"cores": 2}]\\n\'); print("about to end")'


@pytest.mark.parametrize(
    ("end", "error"), [("", None), ("raise ValueError('no')", r"exit code 1: about to end\n.*ValueError: no")]
)
def test_a_part_that_fails_keeps_its_figures(
    end: str, error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [sys.executable, "-c", f"import sys\n{SAYS}\n{end}", str(tmp_path / "part.jsonl")]
    monkeypatch.setattr(gpu, "command", lambda *_: script)
    result = gpu.run("part", "cpu", True, tmp_path, budget_s=60)
    assert result.figures == {"rate": 3} and result.machine == {"cores": 2}
    if error is None:
        assert result.error is None
    else:
        assert result.error is not None and re.search(error, result.error, re.DOTALL)


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part.jsonl").write_text('["rate", 3]\n')
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    result = gpu.run("part", "cpu", True, tmp_path, budget_s=0.1)
    assert result.error == "took more than 0.1 s" and result.figures == {"rate": 3}
