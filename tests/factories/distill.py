"""Small layouts for the distillation objective."""

import numpy as np
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from student.config.student import TASKS
from student.distill.head_maps import HEAD_MAPS


def make_spec(layers: dict[str, tuple[int, BevGrid]], **changes: object) -> CacheSpec:
    """A spec of layers with these channels and grids; heatmap and canvas lie on the first grid."""
    grid = next(iter(layers.values()))[1]
    spec = CacheSpec(
        teacher=TeacherIdentity(name="t", weights_sha256="0", config_sha256="0", tasks=TASKS),
        data=DataIdentity(version="v1.0-mini", splits=("mini_train",), samples=1, tokens_sha256="0"),
        points=PointPipeline(),
        layers=tuple(
            LayerSpec(name=name, channels=channels, grid=grid, codec=CodecSpec())
            for name, (channels, grid) in layers.items()
        ),
        heatmap_grid=grid,
        canvas_grid=grid.resized((grid.shape[0] * 4, grid.shape[1] * 4)),
    )
    return spec.model_copy(update=changes)


def random_head_maps(samples: int, tasks: int, grid: BevGrid, seed: int) -> dict[str, Tensor]:
    """A centre head's other maps, float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(samples, tasks, width, *grid.shape, generator=generator, dtype=torch.float64) * 0.3
        for name, width in HEAD_MAPS.items()
    }


def make_box(x: float, y: float, dx: float, dy: float, yaw_rad: float = 0.0) -> Tensor:
    """One box, (1, 9), from its centre, sides and yaw."""
    return torch.tensor([[x, y, 0.0, dx, dy, 1.5, yaw_rad, 0.0, 0.0]])


def random_boxes(count: int, grid: BevGrid, seed: int, largest_m: float = 6.0) -> Tensor:
    """Boxes (count, 9) in and around a grid, of any yaw."""
    rng = np.random.default_rng(seed)
    (x0, x1), (y0, y1) = grid.x_range_m, grid.y_range_m
    columns = [
        rng.uniform(x0 - 2, x1 + 2, count),
        rng.uniform(y0 - 2, y1 + 2, count),
        np.zeros(count),
        rng.uniform(0.3, largest_m, count),
        rng.uniform(0.3, largest_m / 2, count),
        np.ones(count),
        rng.uniform(-4, 4, count),
        np.zeros(count),
        np.zeros(count),
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()
