"""Batch: the samples of one step, as detector, objective and losses take them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cache.errors import DataError
from cache.store.batch import TeacherBatch


@dataclass(frozen=True, kw_only=True)
class LoadSeconds:
    """Seconds of the process that loaded a batch, summed over its samples."""

    images: float = 0.0
    depth: float = 0.0
    features: float = 0.0

    def __add__(self, other: "LoadSeconds") -> "LoadSeconds":
        return LoadSeconds(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples of T times (the current frame first) and N cameras.

    BEVDet and BEVDepth write `ida_mat` for image_matrix and `bda_mat` for bev_matrix, and have `sensor2ego` where
    camera_to_lidar is here.

    images: RGB at the network's size, not normalised.
    intrinsics: of the original images, in pixels.
    image_matrix: original pixels (u, v, 1) -> pixels of `images`, the realised augmentation.
    camera_to_lidar: camera -> LiDAR of its own key frame.
    to_current: LiDAR of each time -> LiDAR of the current frame, by ego motion (identity for the first).
    lidar_to_ego: LiDAR -> vehicle, of the current frame.
    bev_matrix: current LiDAR -> augmented BEV, the realised augmentation (identity without one).
    depth_m: nearest LiDAR point in each image_stride x image_stride patch of the current images, 0 without a point;
        None for detectors that do not learn depth.
    points_m: x, y, z of these points in the augmented BEV frame; None unless a term of the objective compares depths.
    boxes: x, y, z (bottom), dx, dy, dz, yaw_rad, vx, vy in the augmented BEV frame, one tensor a sample.
    labels: index into cache.spec.CLASSES, one tensor a sample.
    labelled: whether each sample has labels; on the others boxes and labels are empty.
    teachers: the cached sample of each teacher, in the view nearest to bev_matrix; empty without distillation.
    to_teachers: for each teacher, metres of the augmented BEV frame -> metres of its view; None where both are the
        same. They stay on the CPU, where `student.distill.warp` decides with them before it starts work on the device.
    load_seconds: the cost of making the batch, for `student.training.profile`.
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
    to_teachers: tuple[Float[Tensor, "B 4 4"] | None, ...] = ()
    load_seconds: LoadSeconds = LoadSeconds()
    points_m: Float[Tensor, "B N hs ws 3"] | None = None
    labelled: tuple[bool, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device; `to_teachers` stays on the CPU."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a copy to a GPU does not block; DataLoader calls it."""
        return self._each(lambda part: part.pin_memory())

    def require_depth_m(self) -> Float[Tensor, "B N hs ws"]:
        """`depth_m`.

        Raises:
            DataError: the batch has none.
        """
        if self.depth_m is None:
            raise DataError("the detector learns depth and the batch has none", cure="StudentDataset(with_depth=True)")
        return self.depth_m

    def labelled_samples(self) -> list[int] | None:
        """The indices of the samples with labels; None for all."""
        return None if all(self.labelled) else [index for index, known in enumerate(self.labelled) if known]

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        moving = [field.name for field in fields(self) if field.name != "to_teachers"]
        return replace(self, **{name: _changed(getattr(self, name), change) for name in moving})

    def __len__(self) -> int:
        return len(self.tokens)


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the samples of several, which have no teachers yet."""
    return Batch(**{field.name: _joined([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)})


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor | TeacherBatch):
        return change(value)
    return tuple(_changed(item, change) for item in value) if isinstance(value, tuple) else value


def _joined(values: list[Any]) -> Any:
    match values[0]:
        case None:
            return None
        case Tensor():
            return torch.cat(values)
        case LoadSeconds():
            return sum(values, LoadSeconds())
        case _:
            return sum(values, ())
