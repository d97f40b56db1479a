"""Images, boxes, depth and the teacher's sample -> Batch."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cache.errors import DataError
from cache.frames import Camera, Frame, Frames
from cache.points import load_points
from cache.reader import TeacherBatch, TeacherCache
from cache.spec import PointPipeline
from cache.views import bev_matrix, move_boxes
from student.augment import image_matrix, reduced_pixels, warp_image
from student.config import StudentConfig

KEY_SWEEP_ONLY = PointPipeline(past_sweeps=0, pad_empty_sweeps=False)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples of T times (the current frame first) and N cameras.

    images: RGB at the network's size, not normalised.
    intrinsics: of the original images, in pixels.
    image_matrix: original pixels (u, v, 1) -> pixels of `images`, the augmentation that was realised.
    camera_to_lidar: camera -> LiDAR of its own key frame.
    to_current: LiDAR of each time -> LiDAR of the current frame, by ego motion (identity for the first).
    bev_matrix: current LiDAR -> augmented BEV, the augmentation that was realised (identity where there is none).
    depth_m: nearest LiDAR point in each image_stride x image_stride patch of the current images; 0 where there is none.
    boxes: x, y, z (bottom), dx, dy, dz, yaw_rad, vx, vy in the augmented BEV frame, one tensor a sample.
    labels: index into cache.spec.CLASSES, one tensor a sample.
    teachers: what each teacher's cache holds of the same samples; empty where the student trains alone.
    """

    tokens: tuple[str, ...]
    images: UInt8[Tensor, "B T N 3 h w"]
    intrinsics: Float[Tensor, "B T N 3 3"]
    image_matrix: Float[Tensor, "B T N 3 3"]
    camera_to_lidar: Float[Tensor, "B T N 4 4"]
    to_current: Float[Tensor, "B T 4 4"]
    bev_matrix: Float[Tensor, "B 4 4"]
    depth_m: Float[Tensor, "B N hs ws"]
    boxes: tuple[Float[Tensor, "_ 9"], ...]
    labels: tuple[Int[Tensor, "_"], ...]
    teachers: tuple[TeacherBatch, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return replace(self, **{f.name: _move(getattr(self, f.name), device, non_blocking) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.tokens)


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, Tensor | TeacherBatch):
        return value.to(device, non_blocking=non_blocking)
    return tuple(_move(item, device, non_blocking) for item in value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One position of the training's sequence: which frame, and the seed of all its augmentation (None: no draw)."""

    index: int
    seed: tuple[int, ...] | None = None


class StudentDataset(Dataset[Batch]):
    """Frames as batches of one; `collate` joins them and reads the teacher's samples."""

    def __init__(self, frames: Frames, config: StudentConfig, times: int = 1) -> None:
        self.frames, self.config, self.times = frames, config, times

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: Draw | int) -> Batch:
        draw = Draw(index=draw) if isinstance(draw, int) else draw
        rng = None if draw.seed is None else np.random.default_rng(draw.seed)
        history = list(self._history(self.frames[draw.index]))
        current = history[0]
        matrix = bev_matrix(self.config.bev_augment, rng)
        views = [[self._view(camera, rng) for camera in frame.cameras] for frame in history]
        depth = project_depth(current, [image_matrix for _, image_matrix in views[0]], self.config)
        global_to_current = np.linalg.inv(current.lidar_to_global)
        return Batch(
            tokens=(current.token,),
            images=torch.from_numpy(np.stack([[image for image, _ in row] for row in views])[None]).movedim(-1, -3),
            intrinsics=_float([[[c.intrinsics for c in f.cameras] for f in history]]),
            image_matrix=_float([[[image_matrix for _, image_matrix in row] for row in views]]),
            camera_to_lidar=_float([[[c.to_lidar for c in f.cameras] for f in history]]),
            to_current=_float([[global_to_current @ f.lidar_to_global for f in history]]),
            bev_matrix=_float([matrix]),
            depth_m=_float([depth]),
            boxes=(_float(move_boxes(current.boxes, matrix)),),
            labels=(torch.from_numpy(current.labels),),
        )

    def _history(self, frame: Frame) -> Iterator[Frame]:
        """The frame and those before it; at a scene's start, the first one again."""
        for _ in range(self.times):
            yield frame
            frame = self.frames[frame.previous] if frame.previous else frame

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
    joined = {f.name: _join([getattr(sample, f.name) for sample in samples]) for f in fields(Batch)}
    teachers = tuple(source.cache.read(joined["tokens"], layers=source.layers) for source in sources)
    return Batch(**joined | {"teachers": teachers})


def _join(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else sum(values, ())


def read_image(camera: Camera, scale: float) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "3 3"]]:
    """Decode an image, at a reduced size where the target is that much smaller (`scale` < 1: target / original).

    Returns:
        RGB pixels, and the matrix that takes them to the original's pixels.

    Raises:
        DataError: the file is missing, corrupt, cut short or of another size than the tables say.
    """
    height, width = camera.size
    try:
        with Image.open(camera.path) as image:
            size = image.size
            image.draft("RGB", (int(scale * width), int(scale * height)))
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(
            "a camera image is missing", where=camera.path, cure="Unpack the data set's blobs again"
        ) from None
    except (OSError, SyntaxError) as error:
        raise DataError(
            "a camera image is corrupt", where=camera.path, got=error, cure="Unpack the data set's blobs again"
        ) from None
    if size != (width, height):
        raise DataError(
            "a camera image has another size than sample_data.json says",
            where=camera.path,
            got=f"{size[0]} x {size[1]}",
            expected=f"{width} x {height}",
            cure="Use the original images, not resized ones",
        )
    return pixels, reduced_pixels(width / pixels.shape[1], height / pixels.shape[0])


def project_depth(
    frame: Frame, image_matrices: list[Float[np.ndarray, "3 3"]], config: StudentConfig
) -> Float[np.ndarray, "N hs ws"]:
    """Depth (metres along the optical axis) of the nearest LiDAR point in each patch of the input images.

    Patches are detector.image_stride pixels square; 0 marks those without a point (BEVDepth, section 3.2).
    """
    stride = config.detector.image_stride
    rows, columns = (side // stride for side in config.image.size)
    points = load_points(frame, KEY_SWEEP_ONLY)[:, :3].astype(np.float64)
    depth = np.full((len(frame.cameras), rows, columns), np.inf, dtype=np.float32)
    for index, (camera, matrix) in enumerate(zip(frame.cameras, image_matrices, strict=True)):
        lidar_to_camera = np.linalg.inv(camera.to_lidar)
        seen = points @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]
        seen = seen[seen[:, 2] > config.detector.depth_m[0]]
        pixels = (seen / seen[:, 2:]) @ (matrix @ camera.intrinsics).T
        patch = np.floor((pixels[:, :2] + 0.5) / stride).astype(np.int64)
        inside = ((patch >= 0) & (patch < (columns, rows))).all(axis=1)
        np.minimum.at(depth[index], (patch[inside, 1], patch[inside, 0]), seen[inside, 2])
    return np.where(np.isinf(depth), 0, depth)


def _float(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


cv2.setNumThreads(0)  # Loader workers are the parallelism; OpenCV's own threads also break after a fork.
