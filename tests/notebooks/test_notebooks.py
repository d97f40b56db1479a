"""Each notebook runs from top to bottom on a small store, and is kept without what it printed."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")

import nbformat  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWN = {
    "inspect_cache": {"image/png": 6, "text/html": 4, "application/vnd.jupyter.widget-view+json": 1},
    "use_in_your_own_trainer": {},
    "compare_runs": {"image/png": 5, "text/html": 1},
}
"""What each notebook's cells return, by type."""


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_named_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_of(notebook))
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@pytest.fixture(scope="module")
def executed(demo_output: Path) -> Iterator[dict[str, Future[nbformat.NotebookNode]]]:
    """All notebooks, run at the same time: each spends most of it on imports."""
    settings = {"DEMO_OUTPUT": str(demo_output), "PYTHONPATH": str(ROOT)}
    with patch.dict(os.environ, settings), ThreadPoolExecutor(len(NOTEBOOKS)) as threads:
        yield {path.stem: threads.submit(run, path) for path in NOTEBOOKS}


def run(path: Path) -> nbformat.NotebookNode:
    resources = {"metadata": {"path": str(path.parent)}}
    notebook = nbformat.read(path, as_version=4)
    return nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(name: str, executed: dict[str, Future[nbformat.NotebookNode]]) -> None:
    outputs = [output for cell in code_of(executed[name].result()) for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert {kind: kinds.count(kind) for kind in SHOWN[name]} == SHOWN[name]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


def test_a_loop_of_your_own_takes_under_40_lines() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "use_in_your_own_trainer.ipynb", as_version=4)
    *_, objective, loop = code_of(notebook)
    lines = [line for cell in (objective, loop) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) < 40
    assert not re.search(r"\b(mmdet3d|lightning)\b", "\n".join(cell.source for cell in code_of(notebook)))


def test_the_demos_folder_is_the_default() -> None:
    for path in NOTEBOOKS:
        sources = "\n".join(cell.source for cell in code_of(nbformat.read(path, as_version=4)))
        assert 'os.environ.get("DEMO_OUTPUT", "../demo-output")' in sources
