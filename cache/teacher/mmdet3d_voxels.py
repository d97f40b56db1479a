"""What a detector takes of a frame: voxels made in loader workers, or points where it voxelises them itself."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cache.errors import TeacherError
from cache.spec import PointPipeline
from cache.teacher.base import TeacherInput

Detector = Any
"""An mmdet3d detector, an nn.Module whose parts are known at run time only."""
Prepared = dict[str, Tensor]
"""mmdet3d's own format: `voxels`, `coors` (batch, z, y, x) and what else the detector's encoder takes; or `points`."""


def voxel_layer_of(detector: Detector) -> Any:
    """The part with voxel size and range: the preprocessor's, or the detector's own; None where it has neither."""
    layer = getattr(detector.data_preprocessor, "voxel_layer", None)
    return getattr(detector, "pts_voxel_layer", None) if layer is None else layer


def voxelises_itself(detector: Detector) -> bool:
    """Whether the detector takes points, as BEVFusion of mmdet3d's projects does, and not its preprocessor's voxels."""
    return getattr(detector.data_preprocessor, "voxel_layer", None) is None


@dataclass(frozen=True, kw_only=True)
class Voxelise:
    """Points -> what the network takes, in a loader worker: without the network's weights, and pickled cheaply.

    columns: how many the network takes of the points.
    preprocessor: the detector's own, which voxelises; None for a detector that does it itself.
    """

    pipeline: PointPipeline
    columns: int
    range_m: tuple[float, ...]
    preprocessor: Any

    @classmethod
    def of(cls, detector: Detector, pipeline: PointPipeline, columns: int) -> "Voxelise":
        """For a detector, of which a copy of the preprocessor is kept."""
        preprocessor = None if voxelises_itself(detector) else copy.deepcopy(detector.data_preprocessor)
        range_m = tuple(map(float, voxel_layer_of(detector).point_cloud_range))
        return cls(pipeline=pipeline, columns=columns, range_m=range_m, preprocessor=preprocessor)

    def __call__(self, frame: TeacherInput) -> Prepared:
        """One frame, prepared.

        Raises:
            TeacherError: no point lies within the detector's range, or a hook made other columns than the network's.
        """
        points = torch.from_numpy(self._taken(np.ascontiguousarray(frame.points, np.float32)))
        prepared = {"points": points} if self.preprocessor is None else self.preprocessor.voxelize([points], None)
        low, high = torch.tensor(self.range_m).split(3)
        inside = (
            (prepared["coors"] >= 0).all(dim=1)
            if "coors" in prepared
            else ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
        )
        if not inside.any():
            raise TeacherError(
                "no point of the frame lies within the teacher's range",
                got=f"{len(frame.points)} points",
                expected=f"some with x, y, z in {list(self.range_m[:3])} .. {list(self.range_m[3:])}",
                cure="Leave the frame out with exclude; where it is every frame, write the points in metres",
            )
        return prepared

    def _taken(self, points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "M C"]:
        """The points and columns that the pipeline leaves, as PointsRangeFilter does: its edges are outside."""
        if self.pipeline.range_m is not None:
            low, high = np.split(np.asarray(self.pipeline.range_m, np.float32), 2)
            points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(axis=1)]
        if self.pipeline.columns is not None:
            return np.ascontiguousarray(points[:, self.pipeline.columns])
        if points.shape[1] != self.columns:
            raise TeacherError(
                "the points have other columns than the network takes",
                where=f"points hook {self.pipeline.hook}",
                got=points.shape[1],
                expected=self.columns,
                cure="Let the hook make them, or take a configuration that was trained with them (in_channels)",
            )
        return points


def collate(prepared: list[Prepared], device: torch.device) -> dict[str, Any]:
    """Frames as a detector's `extract_feat` takes them; the first coordinate of a voxel is its frame's number."""
    if "points" in prepared[0]:
        return {"points": [frame["points"].to(device) for frame in prepared]}
    batch = {name: torch.cat([voxels[name] for voxels in prepared]) for name in prepared[0]}
    sizes = torch.tensor([len(voxels["coors"]) for voxels in prepared])
    batch["coors"][:, 0] = torch.repeat_interleave(torch.arange(len(prepared)), sizes)
    return {"voxels": {name: part.to(device) for name, part in batch.items()}}


def rows_along_x(detector: Detector, where: str) -> bool:
    """Whether the rows of the detector's maps run along x, which the order of its voxels' coordinates decides.

    mmdet3d's preprocessor numbers voxels (z, y, x), BEVFusion's own layer (x, y, z): a map is what remains without z.

    Raises:
        TeacherError: the detector's own layer numbers them in neither order.
    """
    if not voxelises_itself(detector):
        return False
    layer = detector.pts_voxel_layer
    low, size = np.asarray(layer.point_cloud_range[:3], np.float64), np.asarray(layer.voxel_size, np.float64)
    point = np.zeros((1, 5), np.float32)
    point[0, :3] = low + size * [1.5, 2.5, 0.5]
    made = layer(torch.from_numpy(point).to(next(detector.parameters()).device))
    coordinates = (made if isinstance(made, Tensor) else made[1])[0].tolist()
    if coordinates not in ([0, 2, 1], [1, 2, 0]):
        raise TeacherError(
            "the detector numbers its voxels in an unknown order",
            where=f"{where}, pts_voxel_layer",
            got=f"{coordinates} for a point in the voxel x 1, y 2, z 0",
            expected="z, y, x or x, y, z",
        )
    return coordinates == [1, 2, 0]


def occupied(
    coors: Int[Tensor, "V 4"], frames: int, shape: tuple[int, int], along_x: bool
) -> Bool[Tensor, "{frames} {shape[0]} {shape[1]}"]:
    """The canvas: cells of (H, W) = (y, x) with a voxel, of coordinates (frame, z, y, x), or (frame, x, y, z)."""
    mask = torch.zeros(frames, *shape, dtype=torch.bool, device=coors.device)
    frame, first, second, third = coors[(coors >= 0).all(dim=1)].long().unbind(1)
    mask[frame, second, first if along_x else third] = True
    return mask


class CpuVoxels(nn.Module):
    """A detector's own voxel layer, and mmcv's operator in its place where the points are on the CPU.

    BEVFusion's CPU operator (projects/BEVFusion/bevfusion/ops/voxel/src/voxelization_cpu.cpp) indexes a buffer of
    (z, y, x) by x, y, z, beyond its end. Both number voxels by their first point and keep the first points of each.
    """

    def __init__(self, layer: Any, along_x: bool) -> None:
        super().__init__()
        from mmcv.ops import Voxelization

        self.layer, self.along_x = layer, along_x
        self.voxel_size, self.point_cloud_range = layer.voxel_size, layer.point_cloud_range
        self.on_cpu = Voxelization(
            layer.voxel_size, layer.point_cloud_range, layer.max_num_points, tuple(layer.max_voxels)
        )
        self.train(layer.training)

    def forward(self, points: Float[Tensor, "N C"]) -> Any:
        """Voxels (V, P, C), their coordinates (V, 3) and numbers of points (V); coordinates alone of dynamic voxels."""
        if points.device.type != "cpu":
            return self.layer(points)
        made = self.on_cpu(points)
        if isinstance(made, Tensor):
            return self._ordered(made)
        voxels, coordinates, counts = made
        return voxels, self._ordered(coordinates), counts

    def _ordered(self, coordinates: Int[Tensor, "V 3"]) -> Int[Tensor, "V 3"]:
        return coordinates.flip(1) if self.along_x else coordinates
