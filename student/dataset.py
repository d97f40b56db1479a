"""Images, boxes, depth and the teacher's sample -> Batch."""

from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cache.reader import TeacherBatch


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
    teacher: the cached teacher's view of the same samples; None where the student trains alone.
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
    teacher: TeacherBatch | None = None
