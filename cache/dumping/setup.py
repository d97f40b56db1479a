"""The set-up that dump, plan and repair share: the spec, prepared frames, passes of the teacher and the writer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.dumping.config import DumpConfig
from cache.dumping.encode import encode_samples, join_views
from cache.dumping.prepared import PreparedFrame, PreparedFrames
from cache.errors import ConfigError, TeacherError
from cache.geometry.camera_points import DepthSpec
from cache.geometry.views import sample_label
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.kept import keep_frames
from cache.nuscenes.points import camera_points
from cache.spec import CacheSpec, DataIdentity, LayerSpec
from cache.store.atomic import store_errors
from cache.store.layout import StoredSample
from cache.store.partition import WHOLE, Part
from cache.store.writer import StoreWriter
from cache.teacher.base import Teacher, TeacherOutput
from cache.versions import software_versions


@dataclass(frozen=True, kw_only=True)
class DumpSetup:
    """A teacher, the frames prepared for it, and the spec of the store that they make."""

    config: DumpConfig
    teacher: Teacher
    spec: CacheSpec
    prepared: PreparedFrames

    @classmethod
    def of(cls, config: DumpConfig, frames: Frames, teacher: Teacher) -> "DumpSetup":
        """Build the spec, for which the teacher runs on the first frame.

        Raises:
            TeacherError, ConfigError: see `build_spec`.
            DataError: the first frame's points are missing or broken.
        """
        spec = build_spec(config, frames, teacher)
        prepared = PreparedFrames.of(frames, teacher, config.views, spec.depth)
        return cls(config=config, teacher=teacher, spec=spec, prepared=prepared)

    def open_writer(self, out: Path, part: Part = WHOLE, redo: Collection[int] | None = None) -> StoreWriter:
        """Create or resume the store; see `StoreWriter`."""
        return StoreWriter(
            out,
            self.spec,
            self.prepared.frames.tokens,
            head_weights=self.teacher.head_weights(),
            software=software_versions(),
            layout=self.config.layout,
            part=part,
            redo=redo,
        )

    def keep_frames(self, out: Path) -> None:
        """Keep the frames in the store, so that a training needs no tables.

        Raises:
            StoreError: they cannot be written.
        """
        frames = self.prepared.frames
        if hasattr(frames, "tables"):  # frames that are not made of tables cannot be kept
            with store_errors(out):
                keep_frames(frames, out)

    def encode_view(self, frames: Sequence[PreparedFrame], view: int) -> list[StoredSample]:
        """Run the teacher over one view of a batch of frames and encode its output.

        Raises:
            TeacherError, ConfigError: see `encode_samples`.
        """
        labels = tuple(sample_label(frame.token, self.spec.views[view]) for frame in frames)
        with torch.inference_mode():
            return encode_samples(self.teacher([frame.views[view] for frame in frames]), labels, self.spec)

    def encode(self, frames: Sequence[PreparedFrame]) -> list[StoredSample]:
        """Run the teacher over a batch of frames, view after view; join each frame's views and its depth codes."""
        views = [self.encode_view(frames, view) for view in range(len(self.spec.views))]
        return join_views(views, [frame.depth for frame in frames])


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
    _require_maps(config, teacher, output)
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


def _require_maps(config: DumpConfig, teacher: Teacher, output: TeacherOutput) -> None:
    unknown = [name for name in config.layers if name not in output.layers]
    if unknown:
        raise ConfigError(
            "the teacher has no such layer",
            where=teacher.identity.name,
            got=", ".join(unknown),
            expected=f"some of {', '.join(output.layers)}",
            cure="Change `layers`",
        )
    maps = [(f"layer {name}", output.layers[name], teacher.layer_grids[name]) for name in config.layers]
    maps += [
        ("heatmap", output.heatmap, teacher.heatmap_grid),
        ("canvas mask", output.canvas_mask, teacher.canvas_grid),
    ]
    for where, values, grid in maps:
        shape = tuple(values.shape[-2:])
        if shape != grid.shape:
            raise TeacherError(
                "a map of the teacher does not fit its grid", where=where, got=shape, expected=grid.shape
            )
