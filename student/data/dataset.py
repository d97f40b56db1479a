"""Images, boxes, depth and the teachers' cached samples -> Batch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cache.geometry.views import bev_matrix, transform_boxes
from cache.nuscenes.frame import Camera, Frame
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import camera_points
from student.config.student import StudentConfig
from student.data.batch import Batch, LoadSeconds, join
from student.data.depth_map import depth_map, in_bev, nearest_points
from student.data.image_augment import image_matrix, warp_image
from student.data.images import read_image
from student.data.samplers import SampleDraw
from student.data.teacher_source import TeacherSource
from student.distill.warp import to_teacher

LabelledBoxes = tuple[Float[np.ndarray, "M 9"], Int[np.ndarray, "M"]]
"""Boxes of a frame in the LiDAR's frame, and their labels."""


class StudentDataset(Dataset[Batch]):
    """Frames as batches of one; `collate` joins them and reads the teachers' samples.

    Args:
        times: Key frames of a sample, the current one included.
        with_depth: Load the current frame's depth, for a detector that learns it.
        sources: The teachers' caches. With `bev_augment.replay` the BEV augmentation is one of the drawn views of the
            first. Depth comes from the first that keeps it, or else from the LiDAR files.
        unlabelled: Tokens of frames whose annotations are not used, with the boxes to learn in their place, or None.
    """

    def __init__(
        self,
        frames: Frames,
        config: StudentConfig,
        times: int = 1,
        with_depth: bool = False,
        sources: Sequence[TeacherSource] = (),
        unlabelled: Mapping[str, LabelledBoxes | None] = MappingProxyType({}),
    ) -> None:
        self.unlabelled = unlabelled
        self.frames, self.config, self.times, self.with_depth = frames, config, times, with_depth
        self.sources = tuple(sources)
        self._depth_source = next((source for source in self.sources if source.cache.spec.depth), None)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: SampleDraw | int) -> Batch:
        draw = SampleDraw(index=draw) if isinstance(draw, int) else draw
        self._fetch_ahead(draw)
        rng = None if draw.seed is None else np.random.default_rng(draw.seed)
        history = list(self._history(self.frames[draw.index]))
        current = history[0]
        matrix = self._bev_matrix(current.token, rng)
        began = time.perf_counter()
        views = [[self._image(camera, rng) for camera in frame.cameras] for frame in history]
        read = time.perf_counter()
        image_matrices = [image_matrix for _, image_matrix in views[0]]
        depth_m, points_m = self._depth(current, image_matrices, matrix) if self.with_depth else (None, None)
        seconds = LoadSeconds(images=read - began, depth=time.perf_counter() - read)
        global_to_current = np.linalg.inv(current.lidar_to_global)
        learnt = self.unlabelled.get(current.token, (current.boxes, current.labels))
        boxes, labels = learnt or (current.boxes[:0], current.labels[:0])
        return Batch(
            tokens=(current.token,),
            images=torch.from_numpy(np.stack([[image for image, _ in row] for row in views])[None]).movedim(-1, -3),
            intrinsics=_float([[[c.intrinsics for c in f.cameras] for f in history]]),
            image_matrix=_float([[[image_matrix for _, image_matrix in row] for row in views]]),
            camera_to_lidar=_float([[[c.to_lidar for c in f.cameras] for f in history]]),
            to_current=_float([[global_to_current @ f.lidar_to_global for f in history]]),
            lidar_to_ego=_float([current.lidar_to_ego]),
            bev_matrix=_float([matrix]),
            depth_m=depth_m,
            points_m=points_m,
            boxes=(_float(transform_boxes(boxes, matrix)),),
            labels=(torch.from_numpy(labels),),
            labelled=(learnt is not None,),
            load_seconds=seconds,
        )

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Join samples, and add the teachers' samples of the same tokens with the matrices to their BEV frames."""
        joined = join(samples)
        began = time.perf_counter()
        teachers = tuple(source.read(joined.tokens, joined.bev_matrix) for source in self.sources)
        grid = self.config.detector.grid
        to_teachers = tuple(
            to_teacher(grid, source.cache.spec.heatmap_grid, maps.view_matrix, joined.bev_matrix, joined.lidar_to_ego)
            for source, maps in zip(self.sources, teachers, strict=True)
        )
        seconds = joined.load_seconds + LoadSeconds(features=time.perf_counter() - began)
        return replace(joined, teachers=teachers, to_teachers=to_teachers, load_seconds=seconds)

    def _fetch_ahead(self, draw: SampleDraw) -> None:
        tokens = [self.frames.tokens[index] for index in draw.ahead]
        for source in self.sources if tokens else ():
            source.fetch_ahead(tokens, depth=self.with_depth and source is self._depth_source)

    def _history(self, frame: Frame) -> Iterator[Frame]:
        """The frame and those before it; at a scene's start, the first one again."""
        for _ in range(self.times):
            yield frame
            for _ in range(self.config.detector.history_step):
                frame = self.frames[frame.previous] if frame.previous else frame

    def _bev_matrix(self, token: str, rng: np.random.Generator | None) -> Float[np.ndarray, "4 4"]:
        if rng is None or not self.config.bev_augment.replay:
            return bev_matrix(self.config.bev_augment, rng)
        drawn = self.sources[0].drawn_matrices(token)
        return drawn[rng.integers(len(drawn))]

    def _depth(
        self, frame: Frame, image_matrices: list[Float[np.ndarray, "3 3"]], bev_matrix: Float[np.ndarray, "4 4"]
    ) -> tuple[Float[Tensor, "1 N hs ws"], Float[Tensor, "1 N hs ws 3"] | None]:
        """`Batch.depth_m` and `Batch.points_m`."""
        nearest_m, source = self.config.detector.depth_m[0], self._depth_source
        points = source.camera_points(frame.token, nearest_m) if source else camera_points(frame, nearest_m)
        depth_m = _float([depth_map(points, image_matrices, self.config)])
        if self.config.distill is None or not self.config.distill.compares_depth:
            return depth_m, None
        return depth_m, _float([in_bev(nearest_points(points, image_matrices, self.config), frame.cameras, bev_matrix)])

    def _image(
        self, camera: Camera, rng: np.random.Generator | None
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "3 3"]]:
        matrix = image_matrix(self.config.image, camera.size, rng)
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        image, to_original = read_image(camera, scale)
        return warp_image(image, matrix @ to_original, self.config.image.size), matrix


def _float(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
