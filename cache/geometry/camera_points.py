"""Codes of the key sweep's LiDAR points in the cameras, from which training learns depth without LiDAR files.

A store keeps a list of points for each camera; a depth image takes far longer to decompress (benchmarks/depth.py).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt16
from pydantic import Field

from cache.config import Strict
from cache.errors import DataError

CODES = 2**16
MIN_POINTS = 2**14


class DepthSpec(Strict):
    """Quantisation of points in images: codes (u, v, depth) of uint16, nearest first, zeros after the last.

    u and v are (code + 0.5) * pixel_step - 0.5 in original pixels, where the centre of the first pixel is 0. Depth
    along the optical axis is code * depth_step_m; a depth of 0 marks the end of a list.
    """

    cameras: tuple[str, ...]
    room: int = Field(gt=0, le=2**24)
    """Capacity of each camera's list of points."""
    pixel_step: float = Field(gt=0)
    depth_step_m: float = Field(0.005, gt=0)

    @classmethod
    def fitting(cls, cameras: tuple[str, ...], longest_side: int, most_points: int) -> "DepthSpec":
        """The finest pixel step for images with sides up to `longest_side`, and room for twice `most_points`."""
        room = max(MIN_POINTS, _power_of_two(2 * most_points))
        return cls(cameras=cameras, room=room, pixel_step=_power_of_two(longest_side) / CODES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sample's codes: (cameras, 3, room)."""
        return len(self.cameras), 3, self.room

    def __str__(self) -> str:
        return f"of {len(self.cameras)} cameras, to 1/{1 / self.pixel_step:g} pixel and {1000 * self.depth_step_m:g} mm"


def depth_codes(points: Sequence[Float[np.ndarray, "_ 3"]], spec: DepthSpec) -> UInt16[np.ndarray, "N 3 P"]:
    """Lists of u, v (pixels) and depth (metres) as codes; depths that round to 0 or to beyond 2^16 steps are left out.

    Raises:
        DataError: a list is longer than its room, or a pixel beyond its codes.
    """
    codes = np.zeros(spec.shape, np.uint16)
    for row, name, uvd in zip(codes, spec.cameras, points, strict=True):
        place = np.floor((uvd[:, :2] + 0.5) / spec.pixel_step)
        depth = np.round(uvd[:, 2] / spec.depth_step_m)
        found = np.column_stack([place, depth])[(depth >= 1) & (depth < CODES)]
        if len(found) > spec.room or found.max(initial=0) >= CODES:
            raise DataError(
                "the points of a camera do not fit the store",
                where=name,
                got=f"{len(found)} points, the last of them at pixel {uvd[:, :2].max():.0f}",
                expected=f"at most {spec.room} points, in an image of {CODES * spec.pixel_step:g} pixels a side",
                cure="Dump without `depth`, or images of one size each by themselves: the first frame sets the room",
            )
        row[:, : len(found)] = found[np.argsort(found[:, 2], kind="stable")].T
    return codes


def decoded_points(
    codes: UInt16[np.ndarray, "N 3 P"], spec: DepthSpec, nearest_m: float = 0.0
) -> list[Float[np.ndarray, "_ 3"]]:
    """The lists of u, v and depth, rounded to the steps of the codes; points up to `nearest_m` away are left out."""
    steps, half = np.array([spec.pixel_step, spec.pixel_step, spec.depth_step_m]), np.array([0.5, 0.5, 0])
    lists = [(row[:, row[2] > 0].T + half) * steps - half for row in codes]
    return [points[points[:, 2] > nearest_m] for points in lists]


def _power_of_two(at_least: int) -> int:
    return 2 ** (at_least - 1).bit_length()
