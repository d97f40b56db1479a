"""The teacher's protocol: frames in, named feature maps out."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.geometry.views import transform_points
from cache.nuscenes.frames import Camera, Frame
from cache.spec import PointPipeline, TeacherIdentity


@dataclass(frozen=True, kw_only=True)
class TeacherInput:
    """One view of a frame, as a teacher takes it.

    points: of the key frame and its past sweeps, transformed by the view: x, y, z in metres, intensity 0 .. 255, lag in
        seconds; other columns where the dump's `points` hook makes them.
    cameras: images' paths and calibrations; `to_lidar` leads to the same transformed frame as the points.
    view_matrix: from the key frame's LiDAR to the view, the identity for `canonical`.
    """

    token: str
    points: Float[np.ndarray, "N D"]
    cameras: tuple[Camera, ...] = ()
    view_matrix: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))

    @classmethod
    def of_points(cls, points: Float[np.ndarray, "N D"]) -> "TeacherInput":
        """Points alone, for teachers that take no images."""
        return cls(token="", points=points)

    @classmethod
    def of_view(
        cls, frame: Frame, points: Float[np.ndarray, "N D"], matrix: Float[np.ndarray, "4 4"]
    ) -> "TeacherInput":
        """A frame's points (not yet transformed) and cameras in a view."""
        cameras = tuple(replace(camera, to_lidar=matrix @ camera.to_lidar) for camera in frame.cameras)
        return cls(token=frame.token, points=transform_points(points, matrix), cameras=cameras, view_matrix=matrix)


@dataclass(frozen=True, kw_only=True)
class TeacherOutput:
    """The teacher's maps of B frames, on its device.

    layers: float maps by name, as in DistillBEV: `head` (the neck's output), `backbone0..2`.
    heatmap: probabilities of all classes, K = the tasks' classes concatenated in the head's order; None of a detector
        without heatmaps (anchors, transformers).
    head_maps: the head's other maps ("reg", "height", "dim", "rot", "vel"), one row for each of T tasks.
    canvas_mask: which pillars (or BEV columns) hold a point.
    """

    layers: dict[str, Float[Tensor, "B _ _ _"]]
    heatmap: Float[Tensor, "B K _ _"] | None
    head_maps: dict[str, Float[Tensor, "B T _ _ _"]]
    canvas_mask: Bool[Tensor, "B _ _"]

    @property
    def probability(self) -> Float[Tensor, "B K _ _"]:
        """The heatmap.

        Raises:
            TeacherError: the teacher has none.
        """
        if self.heatmap is None:
            raise TeacherError("the teacher has no heatmaps", expected="a teacher with a CenterHead")
        return self.heatmap


@runtime_checkable
class Teacher(Protocol):
    """A detector in eval mode, none of whose parameters requires a gradient.

    heatmap_grid: of the heatmap and the head's other maps; of the layer `head` where there is no heatmap.
    canvas_grid: of the canvas mask.
    """

    identity: TeacherIdentity
    points: PointPipeline
    layer_grids: dict[str, BevGrid]
    heatmap_grid: BevGrid
    canvas_grid: BevGrid

    def prepare(self, frame: TeacherInput) -> Any:
        """Prepare one view of a frame on the CPU, in a loader worker (voxelisation).

        `teacher.prepare` is pickled for the workers: make it an object of its own, without the network.
        """

    def __call__(self, prepared: list[Any]) -> TeacherOutput:
        """Run B prepared frames through the network."""

    def head_weights(self) -> dict[str, Tensor]:
        """The head's state dict, for students that inherit it."""
