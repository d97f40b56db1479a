"""The plug-in under Python 3.8, with its own dependencies alone, and under mmcv 1.x.

`BEVCACHE_PYTHONS` names interpreters that have torch, numcodecs and google-crc32c, separated by colons; by default
python3.8.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.plugins.bevcache.old_python import run_case
from tests.plugins.bevcache.test_objective import COVERED, golden_case, make_case

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
PYTHONS = os.environ.get("BEVCACHE_PYTHONS", "python3.8").split(":")


def require(python: str, modules: str) -> str:
    """The interpreter, or a skip with the reason."""
    path = shutil.which(python)
    if path is None:
        pytest.skip(f"{python} is not here")
    found = subprocess.run([path, "-W", "ignore", "-c", f"import {modules}"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"{python}: {found.stderr.strip().splitlines()[-1]}")
    return path


def run(python: str, *arguments: object) -> str:
    done = subprocess.run([python, "-W", "ignore", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_same_terms_and_gradients(python: str, tmp_path: Path) -> None:
    path = require(python, "torch, numcodecs.zstd, google_crc32c")
    cases = [make_case(seed) for seed in range(12)]
    for case in map(golden_case, COVERED):
        terms, gradients = run_case(case)
        cases.append(case | {"terms": terms, "gradients": gradients})
    for number, case in enumerate(cases):
        grids = {name: (channels, tuple(grid)) for name, (channels, grid) in case["layers"].items()}
        plain = case | {"layers": grids, "heatmap_grid": tuple(case["heatmap_grid"])}
        torch.save(plain, tmp_path / f"{number:02}.pt")
    printed = run(path, HERE / "old_python.py", ROOT / "plugins", *sorted(tmp_path.glob("*.pt")))
    assert printed.startswith("16 cases with Python 3.")


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_same_values(python: str) -> None:
    path = require(python, "torch, numcodecs.zstd, google_crc32c")
    program = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from bevcache.reader import TeacherStore
for path in sys.argv[2:]:
    store, digest = TeacherStore(path), hashlib.sha256()
    for view in range(len(store.spec["views"])):
        batch = store.read(list(store.positions), views=[view] * len(store.positions))
        for name in sorted(batch):
            digest.update(batch[name].numpy().tobytes())
    print(digest.hexdigest())
"""
    stores = [ROOT / "tests" / "data" / name for name in ("store-v1", "store-v1-views", "store-v2")]
    here = run(sys.executable, "-c", program, ROOT / "plugins", *stores)
    assert run(path, "-c", program, ROOT / "plugins", *stores) == here
    assert len(here.split()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_training_by_mmcv_1(python: str, tmp_path: Path) -> None:
    path = require(
        python, "torch, numcodecs.zstd, google_crc32c, pyquaternion, mmcv.runner; assert mmcv.__version__ < '2'"
    )
    store = ROOT / "tests" / "data" / "store-v2"
    assert "steps, from" in run(path, HERE / "old_mmcv.py", ROOT / "plugins", store, tmp_path)
