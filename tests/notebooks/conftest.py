"""What `make demo` leaves, in small and without mmdet3d: a small teacher's store, evaluations, logs."""

from pathlib import Path
from types import ModuleType

import pytest

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from student.evaluation.evaluate import evaluate
from student.evaluation.teacher_boxes import teacher_detections
from tests.factories.students import make_teacher


@pytest.fixture(scope="session")
def demo_output(devkit: ModuleType, made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's folder: world, teacher.zarr, and three runs."""
    out = tmp_path_factory.mktemp("demo-output")
    (out / "world").symlink_to(made_root)
    splits = ("mini_train", "mini_val")
    config = DumpConfig(teacher="small", version="v1.0-mini", splits=splits, layers={"head": {}}, workers=0)
    dump(config, Frames(root=made_root, version="v1.0-mini", splits=splits), make_teacher(), out / "teacher.zarr")
    frames = Frames(root=made_root, version="v1.0-mini", splits=("mini_val",))
    found = list(teacher_detections(TeacherCache(out / "teacher.zarr"), frames.tokens))
    for run in ("teacher", "student", "distilled"):
        evaluate(found, frames, out / run / "evaluation")
    for run, terms in (("student", ""), ("distilled", "loss/distill/fgd/head/foreground")):
        (out / run / "csv").mkdir()
        lines = [f"step,loss/heatmap,{terms}", *(f"{step},{10 / (step + 1)},{terms and 1}" for step in range(50))]
        (out / run / "csv" / "metrics.csv").write_text("\n".join(lines))
    return out
