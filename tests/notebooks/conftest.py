"""What `make demo` leaves, in small and without mmdet3d: a store of a stand-in teacher, evaluations, logs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.dumping.run import DumpConfig, dump
from cache.nuscenes.frames import Frames
from cache.geometry.grid import BevGrid
from cache.store.reader import TeacherCache
from cache.spec import PointPipeline, TeacherIdentity
from cache.teacher.base import TeacherOutput
from student.config.student import TASKS
from student.evaluation.evaluate import evaluate
from student.evaluation.teacher_boxes import teacher_detections
from student.models.center_head import HEAD_MAPS

GRID = BevGrid(x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0), cell_m=(0.8, 0.8))


class StandIn(torch.nn.Module):
    """Random convolutions on a canvas that is 1 where points are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.neck = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.heatmap = torch.nn.Conv2d(8, sum(map(len, TASKS)), 1)
        self.maps = torch.nn.ModuleDict({name: torch.nn.Conv2d(8, 6 * size, 1) for name, size in HEAD_MAPS.items()})
        self.eval().requires_grad_(False)
        self.identity = TeacherIdentity(name="stand-in", weights_sha256="0" * 64, config_sha256="1" * 64, tasks=TASKS)
        self.points = PointPipeline(past_sweeps=1)
        self.canvas_grid = self.heatmap_grid = GRID
        self.layer_grids = {"head": GRID}

    def prepare(self, points: np.ndarray) -> torch.Tensor:
        cells = np.floor(GRID.to_cells(points[:, :2])).astype(int)
        inside = ((cells >= 0) & (cells < GRID.shape[0])).all(axis=1)
        canvas = torch.zeros(1, *GRID.shape)
        canvas[0, cells[inside, 1], cells[inside, 0]] = 1
        return canvas

    def forward(self, prepared: list[torch.Tensor]) -> TeacherOutput:
        canvas = torch.stack(prepared)
        head = self.neck(canvas).relu()
        return TeacherOutput(
            layers={"head": head},
            heatmap=self.heatmap(head).sigmoid(),
            head_maps={name: of(head).unflatten(1, (6, HEAD_MAPS[name])) for name, of in self.maps.items()},
            canvas_mask=canvas[:, 0] > 0,
        )

    def head_weights(self) -> dict[str, torch.Tensor]:
        return {"heatmap.weight": self.heatmap.weight}


@pytest.fixture(scope="session")
def demo_output(made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's folder: world, teacher.zarr, and three runs."""
    out = tmp_path_factory.mktemp("demo-output")
    (out / "world").symlink_to(made_root)
    splits = ("mini_train", "mini_val")
    config = DumpConfig(teacher="stand-in", version="v1.0-mini", splits=splits, layers={"head": {}}, workers=0)
    dump(config, Frames(root=made_root, version="v1.0-mini", splits=splits), StandIn(), out / "teacher.zarr")
    frames = Frames(root=made_root, version="v1.0-mini", splits=("mini_val",))
    found = list(teacher_detections(TeacherCache(out / "teacher.zarr"), frames.tokens))
    for run in ("teacher", "student", "distilled"):
        evaluate(found, frames, out / run / "evaluation")
    for run, terms in (("student", ""), ("distilled", "loss/distill/fgd/head/foreground")):
        (out / run / "csv").mkdir()
        lines = [f"step,loss/heatmap,{terms}", *(f"{step},{10 / (step + 1)},{terms and 1}" for step in range(50))]
        (out / run / "csv" / "metrics.csv").write_text("\n".join(lines))
    return out
