import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.boxes import first_box, pad_boxes
from tests.factories.distill import make_box, random_boxes

# Higher than wide, cells that are not square, a range that is not centred at 0.
GRID = BevGrid(x_range_m=(-4.0, 12.0), y_range_m=(2.0, 22.0), cell_m=(0.8, 0.5))


def dense_first_box(boxes: Tensor, grid: BevGrid) -> np.ndarray:
    """Every cell against every box, one sample."""
    index = np.full(grid.shape, -1)
    centers = grid.centers_m()
    for number, box in reversed(list(enumerate(boxes.double().numpy()))):
        away = centers - box[:2]
        ahead = away[..., 0] * math.cos(box[6]) + away[..., 1] * math.sin(box[6])
        left = away[..., 1] * math.cos(box[6]) - away[..., 0] * math.sin(box[6])
        index[(np.abs(ahead) < box[3] / 2) & (np.abs(left) < box[4] / 2)] = number
    return index


@pytest.mark.parametrize("count", [1, 7, 62, 63, 130])
def test_first_box_agrees_with_every_cell_against_every_box(count: int) -> None:
    samples = tuple(random_boxes(count, GRID, seed) for seed in range(3))
    found = first_box(pad_boxes(samples), GRID)
    for sample, boxes in enumerate(samples):
        assert np.array_equal(found[sample].numpy(), dense_first_box(boxes, GRID))


def test_first_box_of_samples_with_different_numbers_of_boxes() -> None:
    samples = random_boxes(9, GRID, 0), random_boxes(0, GRID, 1), random_boxes(3, GRID, 2)
    found = first_box(pad_boxes(samples), GRID)
    assert (found[1] == -1).all()
    assert np.array_equal(found[2].numpy(), dense_first_box(samples[2], GRID))


def test_first_box_without_any_box() -> None:
    found = first_box(pad_boxes((torch.zeros(0, 9), torch.zeros(0, 9))), GRID)
    assert found.shape == (2, *GRID.shape)
    assert (found == -1).all()


def test_first_box_counts_centres_and_leaves_out_those_on_the_edge() -> None:
    grid = BevGrid(x_range_m=(0.0, 8.0), y_range_m=(0.0, 4.0), cell_m=(1.0, 1.0))
    # Spans x 1.5 .. 4.5 and y 0.5 .. 2.5: the centres at 1.5, 4.5 and at 0.5, 2.5 lie on its edge.
    found = first_box(pad_boxes((make_box(3.0, 1.5, 3.0, 2.0),)), grid)[0]
    expected = torch.full((4, 8), -1)
    expected[1, 2:4] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("quarter", range(-4, 5))
def test_first_box_is_exact_for_right_angles(quarter: int) -> None:
    grid = BevGrid(x_range_m=(-4.0, 4.0), y_range_m=(-4.0, 4.0), cell_m=(1.0, 1.0))
    found = first_box(pad_boxes((make_box(0.0, 0.0, 6.0, 2.0, quarter * math.pi / 2),)), grid)[0] == 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[(3, 4), 1:7] = True
    assert torch.equal(found, expected if quarter % 2 == 0 else expected.T)


def test_the_earlier_of_two_overlapping_boxes_wins() -> None:
    grid = BevGrid(x_range_m=(0.0, 6.0), y_range_m=(0.0, 3.0), cell_m=(1.0, 1.0))
    found = first_box(pad_boxes((torch.cat([make_box(2.0, 1.5, 4.0, 1.2), make_box(4.0, 1.5, 4.0, 1.2)]),)), grid)[0]
    assert found[1].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_box_beyond_the_range_covers_only_what_is_inside() -> None:
    grid = BevGrid(x_range_m=(0.0, 4.0), y_range_m=(0.0, 2.0), cell_m=(1.0, 1.0))
    found = first_box(pad_boxes((make_box(0.0, 2.0, 3.2, 2.2),)), grid)[0]
    assert found.tolist() == [[-1, -1, -1, -1], [0, 0, -1, -1]]
    assert (first_box(pad_boxes((make_box(-9.0, 50.0, 3.0, 3.0),)), grid) == -1).all()


def test_a_box_without_a_size_covers_nothing() -> None:
    grid = BevGrid(x_range_m=(0.0, 4.0), y_range_m=(0.0, 2.0), cell_m=(1.0, 1.0))
    assert (first_box(pad_boxes((make_box(1.5, 0.5, 0.0, 0.0),)), grid) == -1).all()
