"""Images, boxes, depth and the teacher's sample -> Batch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cache.errors import DataError
from cache.geometry.views import bev_matrix, nearest_view, transform_boxes
from cache.nuscenes.frames import CAMERAS, Camera, Frame, Frames
from cache.nuscenes.points import camera_points
from cache.store.batch import TeacherBatch
from cache.store.reader import TeacherCache
from student.config.student import StudentConfig
from student.data.depth_map import depth_map
from student.data.image_augment import image_matrix, warp_image
from student.data.images import read_image


@dataclass(frozen=True, kw_only=True)
class LoadSeconds:
    """What a batch cost the process that loaded it, summed over its samples."""

    images: float = 0.0
    depth: float = 0.0
    features: float = 0.0

    def __add__(self, other: "LoadSeconds") -> "LoadSeconds":
        return LoadSeconds(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples of T times (the current frame first) and N cameras.

    images: RGB at the network's size, not normalised.
    intrinsics: of the original images, in pixels.
    image_matrix: original pixels (u, v, 1) -> pixels of `images`, the augmentation that was realised.
    camera_to_lidar: camera -> LiDAR of its own key frame.
    to_current: LiDAR of each time -> LiDAR of the current frame, by ego motion (identity for the first).
    lidar_to_ego: LiDAR -> vehicle, of the current frame.
    bev_matrix: current LiDAR -> augmented BEV, the augmentation that was realised (identity where there is none).
    depth_m: nearest LiDAR point in each image_stride x image_stride patch of the current images; 0 where there is none.
        None where nobody asked for it.
    boxes: x, y, z (bottom), dx, dy, dz, yaw_rad, vx, vy in the augmented BEV frame, one tensor a sample.
    labels: index into cache.spec.CLASSES, one tensor a sample.
    teachers: what each teacher's cache holds of the same samples, in the view that is nearest to bev_matrix; empty
        where the student trains alone.
    load_seconds: what it took to make the batch, for `student.training.profile`.
    """

    tokens: tuple[str, ...]
    images: UInt8[Tensor, "B T N 3 h w"]
    intrinsics: Float[Tensor, "B T N 3 3"]
    image_matrix: Float[Tensor, "B T N 3 3"]
    camera_to_lidar: Float[Tensor, "B T N 4 4"]
    to_current: Float[Tensor, "B T 4 4"]
    lidar_to_ego: Float[Tensor, "B 4 4"]
    bev_matrix: Float[Tensor, "B 4 4"]
    depth_m: Float[Tensor, "B N hs ws"] | None
    boxes: tuple[Float[Tensor, "_ 9"], ...]
    labels: tuple[Int[Tensor, "_"], ...]
    teachers: tuple[TeacherBatch, ...] = ()
    load_seconds: LoadSeconds = LoadSeconds()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a copy to a GPU does not block; DataLoader calls it."""
        return self._each(lambda part: part.pin_memory())

    def taught_depth_m(self) -> Float[Tensor, "B N hs ws"]:
        """`depth_m`, insisted on.

        Raises:
            DataError: the batch has none.
        """
        if self.depth_m is None:
            raise DataError("the detector learns depth and the batch has none", cure="StudentDataset(with_depth=True)")
        return self.depth_m

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(self, **{f.name: _changed(getattr(self, f.name), change) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.tokens)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor | TeacherBatch):
        return change(value)
    return tuple(_changed(item, change) for item in value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One position of the training's sequence: which frame, and the seed of all its augmentation (None: no draw)."""

    index: int
    seed: tuple[int, ...] | None = None


class StudentDataset(Dataset[Batch]):
    """Frames as batches of one; `collate` joins them and reads the teacher's samples.

    Args:
        times: Key frames of a sample, the current one included.
        with_depth: Give the current frame's depth too, for a detector that learns it.
        replayed: Take the BEV augmentation from the drawn views of this cache.
        depth_cache: A store that keeps the depth (`depth: true`); without it, depth is made of the LiDAR files.

    Raises:
        MismatchError: `depth_cache` keeps no depth, or that of other cameras.
    """

    def __init__(
        self,
        frames: Frames,
        config: StudentConfig,
        times: int = 1,
        with_depth: bool = False,
        replayed: TeacherCache | None = None,
        depth_cache: TeacherCache | None = None,
    ) -> None:
        self.frames, self.config, self.times, self.with_depth = frames, config, times, with_depth
        self.replayed, self.depth_cache = replayed, depth_cache
        if depth_cache is not None:
            depth_cache.spec.require({"depth": {"cameras": CAMERAS}}, depth_cache.path)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: Draw | int) -> Batch:
        draw = Draw(index=draw) if isinstance(draw, int) else draw
        rng = None if draw.seed is None else np.random.default_rng(draw.seed)
        history = list(self._history(self.frames[draw.index]))
        current = history[0]
        matrix = self._bev_matrix(current.token, rng)
        began = time.perf_counter()
        views = [[self._view(camera, rng) for camera in frame.cameras] for frame in history]
        seen = time.perf_counter()
        depth_m = self._depth(current, [image_matrix for _, image_matrix in views[0]]) if self.with_depth else None
        seconds = LoadSeconds(images=seen - began, depth=time.perf_counter() - seen)
        global_to_current = np.linalg.inv(current.lidar_to_global)
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
            boxes=(_float(transform_boxes(current.boxes, matrix)),),
            labels=(torch.from_numpy(current.labels),),
            load_seconds=seconds,
        )

    def _history(self, frame: Frame) -> Iterator[Frame]:
        """The frame and those before it; at a scene's start, the first one again."""
        for _ in range(self.times):
            yield frame
            for _ in range(self.config.detector.history_step):
                frame = self.frames[frame.previous] if frame.previous else frame

    def _bev_matrix(self, token: str, rng: np.random.Generator | None) -> Float[np.ndarray, "4 4"]:
        if self.replayed is None or rng is None:
            return bev_matrix(self.config.bev_augment, rng)
        (stored,) = self.replayed.view_matrices((token,))
        drawn = stored[[name.startswith("drawn") for name in self.replayed.spec.views]]
        return drawn[rng.integers(len(drawn))]

    def _depth(self, frame: Frame, image_matrices: list[Float[np.ndarray, "3 3"]]) -> Float[Tensor, "1 N hs ws"]:
        nearest_m = self.config.detector.depth_m[0]
        if self.depth_cache is None:
            points = camera_points(frame, nearest_m)
        else:
            points = self.depth_cache.camera_points(frame.token, nearest_m)
        return _float([depth_map(points, image_matrices, self.config)])

    def _view(
        self, camera: Camera, rng: np.random.Generator | None
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "3 3"]]:
        matrix = image_matrix(self.config.image, camera.size, rng)
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        image, to_original = read_image(camera, scale)
        return warp_image(image, matrix @ to_original, self.config.image.size), matrix


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A teacher's cache, and the layers that the objective asks of it."""

    cache: TeacherCache
    layers: tuple[str, ...]


def collate(samples: list[Batch], sources: tuple[TeacherSource, ...] = ()) -> Batch:
    """Join batches, and add what each teacher's cache holds of the same tokens, still encoded."""
    joined = Batch(**{f.name: _join([getattr(sample, f.name) for sample in samples]) for f in fields(Batch)})
    began = time.perf_counter()
    teachers = tuple(_teacher_batch(source, joined) for source in sources)
    seconds = joined.load_seconds + LoadSeconds(features=time.perf_counter() - began)
    return replace(joined, teachers=teachers, load_seconds=seconds)


def _teacher_batch(source: TeacherSource, batch: Batch) -> TeacherBatch:
    """Of each sample, the view from which the realised augmentation is the shortest way."""
    views = nearest_view(batch.bev_matrix.numpy(), source.cache.view_matrices(batch.tokens))
    return source.cache.read(batch.tokens, layers=source.layers, views=views.tolist())


def _join(values: list[Any]) -> Any:
    match values[0]:
        case None:
            return None
        case Tensor():
            return torch.cat(values)
        case LoadSeconds():
            return sum(values, LoadSeconds())
        case _:
            return sum(values, ())


def _float(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
