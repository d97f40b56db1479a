"""How two grids lie to each other: over the same ground, with the same cells, or with some ground in common."""

import torch
from jaxtyping import Float
from torch import Tensor

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid

_TIE_M = 1e-3
"""Ends of a range nearer to each other than this are the same."""


def same_ground(student: BevGrid, teacher: BevGrid) -> bool:
    """Whether two grids lie over the same metres of the same frame, with the same axes."""
    ours, theirs = (grid.x_range_m + grid.y_range_m for grid in (student, teacher))
    alike = (student.frame, student.axes) == (teacher.frame, teacher.axes)
    return alike and all(abs(a - b) < _TIE_M for a, b in zip(ours, theirs, strict=True))


def needs_warp(student: BevGrid, teacher: BevGrid, where: str) -> bool:
    """Whether a teacher's map has to be warped to lie on the student's grid even without augmentation.

    Raises:
        MismatchError: both lie over the same ground and only an adapter's factor is missing; or they have no ground in
            common.
    """
    if not same_ground(student, teacher):
        require_common_ground(student, teacher, where)
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


def placement(
    to_teacher: Float[Tensor, "B 4 4"] | None, maps: Tensor, student: BevGrid, teacher: BevGrid
) -> Float[Tensor, "B 4 4"]:
    """Metres of the student's grid -> the teacher's, for B `maps` of any shape; left out, the identity.

    Raises:
        MismatchError: it is left out, and the frames differ.
    """
    if to_teacher is not None:
        return to_teacher
    if student.frame != teacher.frame:
        raise MismatchError(
            "student and teacher live in different frames, and the calibration between them is missing",
            got=f"student {describe(student)}",
            expected=f"teacher {describe(teacher)}",
            cure="Hand over `to_teacher`: the student's metres -> the teacher's metres",
        )
    return torch.eye(4).expand(len(maps), 4, 4)


def require_common_ground(student: BevGrid, teacher: BevGrid, where: str) -> None:
    """Insist that grids of the same frame share some ground; of different frames only the calibration could tell.

    Raises:
        MismatchError: they share none.
    """
    ours, theirs = ((grid.x_range_m, grid.y_range_m) for grid in (student, teacher))
    shared = [min(a[1], b[1]) - max(a[0], b[0]) > _TIE_M for a, b in zip(ours, theirs, strict=True)]
    if student.frame == teacher.frame and not all(shared):
        raise MismatchError(
            "student and teacher have no ground in common",
            where=where,
            got=f"student {describe(student)}",
            expected=f"teacher {describe(teacher)}",
            cure="Set the student's detector.grid to a range that the teacher covers, or use another cache",
        )


def _factor_advice(student: tuple[int, int], teacher: tuple[int, int]) -> str | None:
    """What would make the cells the same; None where no whole factor does."""
    (h, w), (height, width) = student, teacher
    if height % h == 0 and width % w == 0 and height // h == width // w:
        return f"Upsample the student by {height // h} more, or downsample the teacher by as much"
    if h % height == 0 and w % width == 0 and h // height == w // width:
        return f"Downsample the student by {h // height} more, or upsample the teacher by as much"
    return None


def describe(grid: BevGrid) -> str:
    """A grid in words."""
    (x0, x1), (y0, y1), (height, width) = grid.x_range_m, grid.y_range_m, grid.shape
    return f"{height} x {width} cells over x {x0:g} .. {x1:g} m, y {y0:g} .. {y1:g} m ({grid.frame} frame)"
