"""A batch, a head and an objective for terms that compare boxes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cache.geometry.grid import BevGrid
from student.config.student import TASKS
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.head_maps import HEAD_MAPS
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps
from tests.factories.distill import make_spec, random_head_maps

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.8, 4.8), cell_m=(0.8, 0.8))
PAIR = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}
BOXES = (
    torch.tensor([[-4.3, 0.7, 0, 2.9, 1.7, 1, 0.4, 0, 0], [-1.1, -2.2, 0, 0.9, 0.9, 1, 1.4, 0, 0]]),
    torch.tensor([[-5.0, 1.1, 0, 2.1, 2.3, 1, 2.4, 0, 0], [30.0, 1.1, 0, 2.1, 2.3, 1, 2.4, 0, 0]]),
)
LABELS = torch.tensor([0, 8]), torch.tensor([3, 0])
TASK_OF_LABEL = {0: 0, 8: 5, 3: 2}


class Batch:
    """Two samples of a student and a teacher with heads of nuScenes' six tasks, in float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(2, *shape, *GRID.shape, generator=generator, dtype=torch.float64)

        self.features, self.logits = random(4), 2 * random(10) - 5
        self.maps = random_head_maps(2, len(TASKS), GRID, seed=1)
        self.teacher = TeacherMaps(
            features={"head": random(6).relu()},
            heatmap=random(10).sigmoid() ** 6,
            canvas_mask=torch.ones(2, 4 * GRID.shape[0], 4 * GRID.shape[1], dtype=torch.bool),
            head_maps=random_head_maps(2, len(TASKS), GRID, seed=2),
        )

    def terms(self, objective: DistillObjective, matrix: Tensor | None = None, **more: Any) -> dict[str, Tensor]:
        inputs = {"student_maps": self.maps, **more}
        return objective({"head": self.features}, self.logits, self.teacher, BOXES, LABELS, 0, [matrix], **inputs)


class Head(nn.Module):
    """A head of 1 x 1 convolutions, with a batch norm that training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.heatmap = nn.Conv2d(6, 10, 1)
        self.others = nn.ModuleDict({name: nn.Conv2d(6, len(TASKS) * width, 1) for name, width in HEAD_MAPS.items()})

    def forward(self, features: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        features = self.norm(features)
        maps = {name: conv(features).unflatten(1, (len(TASKS), -1)) for name, conv in self.others.items()}
        return self.heatmap(features), maps


def build(*terms: dict[str, Any], heads: dict[int, nn.Module] | None = None, **config: Any) -> DistillObjective:
    torch.manual_seed(0)
    parsed = DistillConfig.parse({"pairs": [PAIR], "terms": terms, **config}, "test")
    spec = make_spec({"head": (6, GRID)}, head_maps=HEAD_MAPS)
    layers = {"head": FeatureLayer(channels=4, grid=GRID)}
    return DistillObjective(parsed, layers, GRID, TASKS, [spec], heads).double()


def code(maps: Mapping[str, Tensor], sample: int, task: int, row: int, column: int) -> list[float]:
    return [value for name in HEAD_MAPS for value in maps[name][sample, task, :, row, column].tolist()]
