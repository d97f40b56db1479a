"""The spec of a store to be dumped, derived from the teacher and the first frame before anything is written."""

from collections.abc import Iterable

from torch import Tensor

from cache.dumping.config import DumpConfig
from cache.dumping.prepared import PreparedFrames
from cache.errors import ConfigError, TeacherError
from cache.geometry.camera_points import DepthSpec
from cache.geometry.grid import BevGrid
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.points import camera_points
from cache.spec import CacheSpec, DataIdentity, LayerSpec
from cache.teacher.base import Teacher, TeacherOutput


def build_spec(config: DumpConfig, frames: Frames, teacher: Teacher) -> CacheSpec:
    """Run the teacher on the first frame, check its maps and describe the store.

    Raises:
        ConfigError: a layer is unknown, or the frames list fewer sweeps than the teacher was trained with.
        TeacherError: a map does not fit its grid.
    """
    if teacher.points.past_sweeps > frames.max_sweeps:
        raise ConfigError(
            "the frames list fewer sweeps than the teacher was trained with",
            got=f"{frames.max_sweeps} past sweeps",
            expected=teacher.points.past_sweeps,
            cure="Open the frames with a larger max_sweeps",
        )
    output = teacher(PreparedFrames.of(frames, teacher)[0].views)
    _require_layers(config.layers, teacher, output)
    for name in config.layers:
        _require_shape(output.layers[name], teacher.layer_grids[name], f"layer {name}")
    _require_shape(output.heatmap, teacher.heatmap_grid, "heatmap")
    _require_shape(output.canvas_mask, teacher.canvas_grid, "canvas mask")
    head_maps = {name: maps.shape[2] for name, maps in output.head_maps.items()}
    return CacheSpec(
        teacher=teacher.identity,
        data=DataIdentity.of(frames.version, frames.splits, frames.tokens),
        points=teacher.points,
        layers=tuple(
            LayerSpec(name=name, channels=output.layers[name].shape[1], grid=teacher.layer_grids[name], codec=codec)
            for name, codec in config.layers.items()
        ),
        heatmap_grid=teacher.heatmap_grid,
        canvas_grid=teacher.canvas_grid,
        head_maps=head_maps if config.head_maps else {},
        views=config.views.names,
        drawn=config.views.drawn_views,
        depth=depth_spec(frames[0]) if config.depth else None,
    )


def depth_spec(frame: Frame) -> DepthSpec:
    """How the points in the cameras of frames like this one are kept."""
    return DepthSpec.fitting(
        cameras=tuple(camera.name for camera in frame.cameras),
        longest_side=max(max(camera.size) for camera in frame.cameras),
        most_points=max(len(points) for points in camera_points(frame)),
    )


def _require_layers(layers: Iterable[str], teacher: Teacher, output: TeacherOutput) -> None:
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
