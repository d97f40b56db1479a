"""The set-up that dump, plan and repair share: spec, prepared frames, the teacher's passes and the store's writer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.dumping.config import DumpConfig
from cache.dumping.encode import encode_samples, join_views
from cache.dumping.prepared import PreparedFrame, PreparedFrames
from cache.dumping.spec_builder import build_spec
from cache.geometry.views import sample_label
from cache.nuscenes.frames import Frames
from cache.spec import CacheSpec
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
