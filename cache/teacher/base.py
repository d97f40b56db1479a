"""The teacher's protocol: LiDAR points in, named feature maps out."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import PointPipeline, TeacherIdentity


@dataclass(frozen=True, kw_only=True)
class TeacherOutput:
    """The teacher's maps of B frames, on its device.

    layers: float maps by name, as in DistillBEV: `head` (the neck's output), `backbone0..2`.
    heatmap: probabilities of all classes, K = the tasks' classes concatenated in the head's order.
    head_maps: the head's other maps ("reg", "height", "dim", "rot", "vel"), one row for each of T tasks.
    canvas_mask: which pillars (or BEV columns) hold a point.
    """

    layers: dict[str, Float[Tensor, "B _ _ _"]]
    heatmap: Float[Tensor, "B K _ _"]
    head_maps: dict[str, Float[Tensor, "B T _ _ _"]]
    canvas_mask: Bool[Tensor, "B _ _"]


@runtime_checkable
class Teacher(Protocol):
    """A LiDAR detector in eval mode, none of whose parameters requires a gradient."""

    identity: TeacherIdentity
    points: PointPipeline
    layer_grids: dict[str, BevGrid]
    heatmap_grid: BevGrid
    canvas_grid: BevGrid

    def prepare(self, points: Float[np.ndarray, "N 5"]) -> Any:
        """Prepare one frame on the CPU, in a loader worker (voxelisation).

        `teacher.prepare` is pickled for the workers: make it an object of its own, without the network.
        """

    def __call__(self, prepared: list[Any]) -> TeacherOutput:
        """Run B prepared frames through the network."""

    def head_weights(self) -> dict[str, Tensor]:
        """The head's state dict, for students that inherit it."""
