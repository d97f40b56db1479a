"""What a store will hold, learnt from the teacher and one frame, before anything is written."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor
from torch.utils.data import Dataset

from cache.errors import ConfigError, OfflineDistillError, TeacherError
from cache.geometry.camera_points import DepthSpec, depth_codes
from cache.geometry.grid import BevGrid
from cache.geometry.views import CANONICAL, ViewsConfig, sample_label, transform_points, view_matrices
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.points import camera_points, load_points
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline
from cache.teacher.base import Teacher, TeacherOutput


@dataclass(frozen=True, kw_only=True)
class PreparedFrames(Dataset):
    """Frames as the teacher takes them, indexed in loader workers; number position * V + v is view v of a frame."""

    frames: Frames
    points: PointPipeline
    prepare: Callable[[Float[np.ndarray, "N 5"]], Any]
    views: ViewsConfig

    @classmethod
    def of(cls, frames: Frames, teacher: Teacher, views: ViewsConfig = CANONICAL) -> "PreparedFrames":
        """Without the teacher's network, which workers do not need."""
        return cls(frames=frames, points=teacher.points, prepare=teacher.prepare, views=views)

    def __len__(self) -> int:
        return len(self.frames) * len(self.views.names)

    def __getitem__(self, number: int) -> Any:
        position, view = divmod(number, len(self.views.names))
        frame, name = self.frames[position], self.views.names[view]
        (matrix,) = view_matrices((name,), self.views.drawn_views, frame.token)
        with naming(sample_label(frame.token, name)):
            return self.prepare(transform_points(load_points(frame, self.points), matrix))


@dataclass(frozen=True, kw_only=True)
class DumpedFrames(Dataset):
    """Prepared frames, numbered like them, each with the codes of its points in the cameras: with its first view alone.

    Codes travel as tensors, through the memory that loader workers share.
    """

    prepared: PreparedFrames
    depth: DepthSpec | None

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, number: int) -> tuple[Any, UInt16[Tensor, "N 3 P"] | None]:
        position, view = divmod(number, len(self.prepared.views.names))
        if self.depth is None or view:
            return self.prepared[number], None
        frame = self.prepared.frames[position]
        with naming(frame.token):
            codes = depth_codes(camera_points(frame), self.depth)
        return self.prepared[number], torch.from_numpy(codes)


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Add the sample to where an error of ours happened."""
    try:
        yield
    except OfflineDistillError as error:
        error.where = ", ".join(str(part) for part in (error.where, f"token {label}") if part)
        raise


def depth_spec(frame: Frame) -> DepthSpec:
    """How the points in the cameras of frames like this one are kept."""
    return DepthSpec.fitting(
        cameras=tuple(camera.name for camera in frame.cameras),
        longest_side=max(max(camera.size) for camera in frame.cameras),
        most_points=max(len(points) for points in camera_points(frame)),
    )


def spec_of(
    layers: Mapping[str, CodecSpec], head_maps: bool, views: ViewsConfig, depth: bool, frames: Frames, teacher: Teacher
) -> CacheSpec:
    """What the store will hold; the first frame is run to learn the maps' channels.

    Raises:
        ConfigError: a layer is unknown, or the frames list fewer sweeps than the teacher wants.
        TeacherError: a map does not fit its grid.
    """
    if teacher.points.past_sweeps > frames.max_sweeps:
        raise ConfigError(
            "the frames list fewer sweeps than the teacher was trained with",
            got=f"{frames.max_sweeps} past sweeps",
            expected=teacher.points.past_sweeps,
            cure="Open the frames with a larger max_sweeps",
        )
    output = teacher([PreparedFrames.of(frames, teacher)[0]])
    _require_layers(layers, teacher, output)
    for name in layers:
        _require_shape(output.layers[name], teacher.layer_grids[name], f"layer {name}")
    _require_shape(output.heatmap, teacher.heatmap_grid, "heatmap")
    _require_shape(output.canvas_mask, teacher.canvas_grid, "canvas mask")
    return CacheSpec(
        teacher=teacher.identity,
        data=DataIdentity.of(frames.version, frames.splits, frames.tokens),
        points=teacher.points,
        layers=tuple(
            LayerSpec(name=name, channels=output.layers[name].shape[1], grid=teacher.layer_grids[name], codec=codec)
            for name, codec in layers.items()
        ),
        heatmap_grid=teacher.heatmap_grid,
        canvas_grid=teacher.canvas_grid,
        head_maps={name: maps.shape[2] for name, maps in output.head_maps.items()} if head_maps else {},
        views=views.names,
        drawn=views.drawn_views,
        depth=depth_spec(frames[0]) if depth else None,
    )


def _require_layers(layers: Mapping[str, CodecSpec], teacher: Teacher, output: TeacherOutput) -> None:
    unknown = [name for name in layers if name not in output.layers]
    if unknown:
        raise ConfigError(
            "the teacher has no such layer",
            where=teacher.identity.name,
            got=", ".join(unknown),
            expected=f"some of {', '.join(output.layers)}",
            cure="Change `layers`",
        )


def _require_shape(maps: Tensor, grid: BevGrid, where: str) -> None:
    shape = tuple(maps.shape[-2:])
    if shape != grid.shape:
        raise TeacherError("a map of the teacher does not fit its grid", where=where, got=shape, expected=grid.shape)
