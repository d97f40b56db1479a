"""Grids beside each other: what is compared as it is, what is warped, what is refused."""

import pytest
import torch

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from student.distill.alignment import needs_warp, placement, require_common_ground, same_ground

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(1.0, 1.0))


def test_the_same_metres_need_no_warp() -> None:
    assert same_ground(GRID, GRID.coarser(2))
    assert not needs_warp(GRID, GRID.resized(GRID.shape), "head")


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
    assert needs_warp(GRID, GRID.model_copy(update=other), "head")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"cell_m": (0.5, 0.5)}, "different cells .*Upsample the student by 2 more, or downsample the teacher by as"),
        ({"cell_m": (4.0, 4.0)}, "got student 8 x 16 cells .*Downsample the student by 4 more, or upsample the teach"),
        (
            {"x_range_m": (8.0, 9.0)},
            r"no ground in common \(head\); got student .* x -8 .. 8 m.*expected teacher .*8 .. 9",
        ),
        ({"y_range_m": (-9.0, -4.0)}, "no ground in common .*Set the student's detector.grid to a range"),
    ],
)
def test_a_forgotten_adapter_and_other_places_are_refused_with_the_cure(other: dict, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        needs_warp(GRID, GRID.model_copy(update=other), "head")


def test_only_a_matrix_tells_what_another_frame_has_in_common() -> None:
    ego, maps = GRID.model_copy(update={"frame": "ego", "x_range_m": (8.0, 9.0)}), torch.zeros(2, 1)
    require_common_ground(GRID, ego, "head")
    with pytest.raises(MismatchError, match=r"different frames.*lidar frame.*ego frame.*Hand over `to_teacher`"):
        placement(None, maps, GRID, ego)
    matrix = torch.rand(2, 4, 4)
    assert placement(matrix, maps, GRID, ego) is matrix
    assert torch.equal(placement(None, maps, GRID, GRID), torch.eye(4).expand(2, 4, 4))
