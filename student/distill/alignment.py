"""Alignment of two BEV grids: the same extent, the same cells, or an overlap."""

import torch
from jaxtyping import Float
from torch import Tensor

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid

_TOLERANCE_M = 1e-3
"""Limits of a range that differ by less than this are equal."""


def same_extent(student: BevGrid, teacher: BevGrid) -> bool:
    """Whether two grids cover the same metres of the same frame, with the same axes."""
    ours, theirs = (grid.x_range_m + grid.y_range_m for grid in (student, teacher))
    same_frame = (student.frame, student.axes) == (teacher.frame, teacher.axes)
    return same_frame and all(abs(a - b) < _TOLERANCE_M for a, b in zip(ours, theirs, strict=True))


def requires_warp(student: BevGrid, teacher: BevGrid, where: str) -> bool:
    """Whether a teacher's map has to be resampled to the student's grid even without augmentation.

    Raises:
        MismatchError: the extents are equal and only an adapter's factor is missing; or they do not overlap.
    """
    if not same_extent(student, teacher):
        require_overlap(student, teacher, where)
        return True
    if student.shape == teacher.shape:
        return False
    advice = _factor_advice(student.shape, teacher.shape)
    if advice is None:
        return True
    raise MismatchError(
        "student and teacher have different cells after their adapters",
        where=where,
        got=f"student {describe(student)}",
        expected=f"teacher {describe(teacher)}",
        cure=advice,
    )


def alignment_matrix(
    to_teacher: Float[Tensor, "B 4 4"] | None, batch_size: int, student: BevGrid, teacher: BevGrid
) -> Float[Tensor, "B 4 4"]:
    """The student grid's metres -> the teacher grid's: `to_teacher`, or the identity where that is None.

    Raises:
        MismatchError: it is None, and the frames differ.
    """
    if to_teacher is not None:
        return to_teacher
    if student.frame != teacher.frame:
        raise MismatchError(
            "student and teacher have different frames, and the calibration between them is missing",
            got=f"student {describe(student)}",
            expected=f"teacher {describe(teacher)}",
            cure="Pass `to_teacher`: the student's metres -> the teacher's metres",
        )
    return torch.eye(4).expand(batch_size, 4, 4)


def require_overlap(student: BevGrid, teacher: BevGrid, where: str) -> None:
    """Raise unless grids of the same frame overlap; of different frames only the calibration decides.

    Raises:
        MismatchError: they do not.
    """
    ours, theirs = ((grid.x_range_m, grid.y_range_m) for grid in (student, teacher))
    overlaps = [min(a[1], b[1]) - max(a[0], b[0]) > _TOLERANCE_M for a, b in zip(ours, theirs, strict=True)]
    if student.frame == teacher.frame and not all(overlaps):
        raise MismatchError(
            "the ranges of student and teacher do not overlap",
            where=where,
            got=f"student {describe(student)}",
            expected=f"teacher {describe(teacher)}",
            cure="Set the student's detector.grid to a range that the teacher covers, or use another cache",
        )


def _factor_advice(student: tuple[int, int], teacher: tuple[int, int]) -> str | None:
    """The adapter's factor that makes the cells equal; None where no whole factor does."""
    (h, w), (height, width) = student, teacher
    if height % h == 0 and width % w == 0 and height // h == width // w:
        return f"Upsample the student by {height // h} more, or downsample the teacher by as much"
    if h % height == 0 and w % width == 0 and h // height == w // width:
        return f"Downsample the student by {h // height} more, or upsample the teacher by as much"
    return None


def describe(grid: BevGrid) -> str:
    """A grid's cells, range and frame as text."""
    (x0, x1), (y0, y1), (height, width) = grid.x_range_m, grid.y_range_m, grid.shape
    return f"{height} x {width} cells over x {x0:g} .. {x1:g} m, y {y0:g} .. {y1:g} m ({grid.frame} frame)"
