"""The set-up that dump, plan and repair share: the spec, prepared frames, passes of the teacher and the writer."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.dumping.config import DumpConfig
from cache.dumping.encode import encode_samples, join_views
from cache.dumping.first_frame import require_sound, run_first_frame
from cache.dumping.prepared import PreparedFrame, PreparedFrames
from cache.errors import ConfigError
from cache.geometry.camera_points import DepthSpec
from cache.geometry.views import sample_label
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import camera_points
from cache.nuscenes.scene_columns import files_of_scenes
from cache.nuscenes.splits import custom_splits
from cache.spec import CacheSpec, DataIdentity, LayerSpec
from cache.store.documents import TeacherFile
from cache.store.layout import StoredSample
from cache.store.partition import WHOLE, Part
from cache.store.writer import StoreWriter
from cache.teacher.base import Teacher
from cache.versions import software_versions


@dataclass(frozen=True, kw_only=True)
class DumpSetup:
    """A teacher, the frames prepared for it, and the spec of the store that they make."""

    config: DumpConfig
    teacher: Teacher
    spec: CacheSpec
    prepared: PreparedFrames
    teacher_file: TeacherFile | None = None

    @classmethod
    def of(cls, config: DumpConfig, frames: Frames, teacher: Teacher, checkpoint: Path | None = None) -> "DumpSetup":
        """Build the spec, for which the teacher runs on the first frame.

        Args:
            checkpoint: the file that the teacher was loaded from, whose hash the store records.

        Raises:
            TeacherError, ConfigError: see `build_spec`.
            DataError: the first frame's points are missing or broken.
        """
        spec = build_spec(config, frames, teacher)
        prepared = PreparedFrames.of(frames, teacher, config.views, spec.depth, config.points)
        teacher_file = None if checkpoint is None else TeacherFile.of(checkpoint)
        return cls(config=config, teacher=teacher, spec=spec, prepared=prepared, teacher_file=teacher_file)

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
            teacher_file=self.teacher_file,
            frames=frame_files(self.prepared.frames),
        )

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


def frame_files(frames: Frames) -> Mapping[str, bytes]:
    """The files of the index of the frames' scenes, so that a training needs no tables; none without tables."""
    if not hasattr(frames, "tables"):
        return {}
    own = custom_splits(frames.root / frames.version)
    return files_of_scenes(frames.tables, frames.rows(), own, frames.version)


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
    prepared = PreparedFrames.of(frames, teacher, hook=config.points)
    output = run_first_frame(teacher, prepared)
    require_sound(config, teacher, output)
    head_maps = {name: maps.shape[2] for name, maps in output.head_maps.items()}
    return CacheSpec(
        teacher=teacher.identity,
        data=DataIdentity.of(frames.version, frames.splits, frames.tokens, frames.lidar),
        points=prepared.points,
        layers=tuple(
            LayerSpec(name=name, channels=output.layers[name].shape[1], grid=teacher.layer_grids[name], codec=codec)
            for name, codec in config.layers.items()
        ),
        heatmap="none" if output.heatmap is None else "probability",
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
