"""Grids beside each other: what is compared as it is, what is warped, what is refused."""

import pytest
import torch

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from student.distill.alignment import alignment_matrix, require_overlap, requires_warp, same_extent

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(1.0, 1.0))


def test_the_same_metres_need_no_warp() -> None:
    assert same_extent(GRID, GRID.coarser(2))
    assert not requires_warp(GRID, GRID.resized(GRID.shape), "head")


@pytest.mark.parametrize(
    "other",
    [
        {"frame": "ego"},
        {"axes": "xy"},
        {"x_range_m": (-7.0, 9.0)},
        {"x_range_m": (-5.0, 15.0), "y_range_m": (-15.0, 5.0)},
        {"cell_m": (0.8, 0.8)},
        {"cell_m": (0.5, 1.0)},
    ],
)
def test_other_ground_or_cells_need_one(other: dict) -> None:
    assert requires_warp(GRID, GRID.model_copy(update=other), "head")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"cell_m": (0.5, 0.5)}, "different cells .*Upsample the student by 2 more, or downsample the teacher by as"),
        ({"cell_m": (4.0, 4.0)}, "got student 8 x 16 cells .*Downsample the student by 4 more, or upsample the teach"),
        (
            {"x_range_m": (8.0, 9.0)},
            r"do not overlap \(head\); got student .* x -8 .. 8 m.*expected teacher .*8 .. 9",
        ),
        ({"y_range_m": (-9.0, -4.0)}, "do not overlap .*Set the student's detector.grid to a range"),
    ],
)
def test_a_forgotten_adapter_and_other_places_are_refused_with_the_cure(other: dict, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        requires_warp(GRID, GRID.model_copy(update=other), "head")


def test_only_a_matrix_tells_what_another_frame_has_in_common() -> None:
    ego = GRID.model_copy(update={"frame": "ego", "x_range_m": (8.0, 9.0)})
    require_overlap(GRID, ego, "head")
    with pytest.raises(MismatchError, match=r"different frames.*lidar frame.*ego frame.*Pass `to_teacher`"):
        alignment_matrix(None, 2, GRID, ego)
    matrix = torch.rand(2, 4, 4)
    assert alignment_matrix(matrix, 2, GRID, ego) is matrix
    assert torch.equal(alignment_matrix(None, 2, GRID, GRID), torch.eye(4).expand(2, 4, 4))
