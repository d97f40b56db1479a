"""Small layouts that the tests of the distillation objective share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity


@pytest.fixture
def tasks() -> tuple[tuple[str, ...], ...]:
    """The six tasks of nuScenes' centre heads."""
    return CLASSES[:1], CLASSES[1:3], CLASSES[3:5], CLASSES[5:6], CLASSES[6:8], CLASSES[8:]


@pytest.fixture
def make_spec(tasks: tuple[tuple[str, ...], ...]) -> Callable[..., CacheSpec]:
    """Makes the record of a cache from its layers' channels and grids; heatmap and canvas lie on the first grid."""

    def make(layers: dict[str, tuple[int, BevGrid]], **changes: object) -> CacheSpec:
        grid = next(iter(layers.values()))[1]
        spec = CacheSpec(
            teacher=TeacherIdentity(name="t", weights_sha256="0", config_sha256="0", tasks=tasks),
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

    return make


@pytest.fixture
def box() -> Callable[..., Tensor]:
    """Makes one box, (1, 9), from its centre, sides and yaw."""

    def make(x: float, y: float, dx: float, dy: float, yaw_rad: float = 0.0) -> Tensor:
        return torch.tensor([[x, y, 0.0, dx, dy, 1.5, yaw_rad, 0.0, 0.0]])

    return make
