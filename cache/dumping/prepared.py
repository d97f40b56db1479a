"""A data set of frames as the teacher takes them, in all views; loader workers index it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor
from torch.utils.data import Dataset

from cache.errors import OfflineDistillError
from cache.geometry.camera_points import DepthSpec, depth_codes
from cache.geometry.views import CANONICAL, ViewsConfig, sample_label, transform_points, view_matrices
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import camera_points, load_sweeps
from cache.spec import PointPipeline
from cache.teacher.base import Teacher


class PreparedFrame(NamedTuple):
    """One frame: what the teacher's `prepare` made of each view, and the depth codes if the store keeps them.

    Codes are a tensor, which travels through the memory that loader workers share; a tuple's tensors can be pinned.
    """

    token: str
    views: list[Any]
    depth: UInt16[Tensor, "N 3 P"] | None


@dataclass(frozen=True, kw_only=True)
class PreparedFrames(Dataset):
    """Frames in all views. A frame's LiDAR files are read once, whatever the number of views."""

    frames: Frames
    points: PointPipeline
    prepare: Callable[[Float[np.ndarray, "N 5"]], Any]
    views: ViewsConfig
    depth: DepthSpec | None

    @classmethod
    def of(
        cls, frames: Frames, teacher: Teacher, views: ViewsConfig = CANONICAL, depth: DepthSpec | None = None
    ) -> "PreparedFrames":
        """Without the teacher's network, which workers do not need."""
        return cls(frames=frames, points=teacher.points, prepare=teacher.prepare, views=views, depth=depth)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> PreparedFrame:
        frame = self.frames[position]
        with naming(frame.token):
            sweeps = load_sweeps(frame, self.points)
            codes = None if self.depth is None else depth_codes(camera_points(frame, key_sweep=sweeps[0]), self.depth)
        points = np.concatenate(sweeps)
        views = []
        names = self.views.names
        for name, matrix in zip(names, view_matrices(names, self.views.drawn_views, frame.token), strict=True):
            with naming(sample_label(frame.token, name)):
                views.append(self.prepare(transform_points(points, matrix)))
        return PreparedFrame(frame.token, views, None if codes is None else torch.from_numpy(codes))


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Add the sample to the place that an OfflineDistillError names."""
    try:
        yield
    except OfflineDistillError as error:
        error.where = ", ".join(str(part) for part in (error.where, f"token {label}") if part)
        raise
