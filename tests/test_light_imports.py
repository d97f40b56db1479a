"""What serves other people's trainers, and a student's training, imports few libraries.

import-linter sees the project's own imports; here a fresh process sees those of the libraries as well.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEACHER_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine", "spconv")


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            ("cache.store.reader", "student.distill.objective"),
            (*TEACHER_LIBRARIES, "pytorch_lightning", "lightning", "nuscenes", "matplotlib", "rich"),
        ),
        (
            ("student.training.trainer", "student.evaluation.evaluate", "student.fidelity.study", "demo.world.make"),
            (*TEACHER_LIBRARIES, "nuscenes"),
        ),
    ],
)
def test_importing_stays_light(modules: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {', '.join(modules)}; print(*[name for name in {forbidden!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
