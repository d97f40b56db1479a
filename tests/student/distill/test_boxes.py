import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.boxes import (
    RADII,
    draw_heatmaps,
    first_box,
    gaussian,
    heatmap_radius,
    pad_boxes,
    sides_in_cells,
    stamp,
    whole_radius,
)
from tests.factories.distill import make_box

# Higher than wide, cells that are not square, a range that is not centred at 0.
GRID = BevGrid(x_range_m=(-4.0, 12.0), y_range_m=(2.0, 22.0), cell_m=(0.8, 0.5))


def random_boxes(count: int, grid: BevGrid, seed: int, largest_m: float = 6.0) -> Tensor:
    rng = np.random.default_rng(seed)
    (x0, x1), (y0, y1) = grid.x_range_m, grid.y_range_m
    columns = [
        rng.uniform(x0 - 2, x1 + 2, count),
        rng.uniform(y0 - 2, y1 + 2, count),
        np.zeros(count),
        rng.uniform(0.3, largest_m, count),
        rng.uniform(0.3, largest_m / 2, count),
        np.ones(count),
        rng.uniform(-4, 4, count),
        np.zeros(count),
        np.zeros(count),
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


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


def test_radii_by_hand() -> None:
    # A box of 6 x 3 cells with overlap 0.1: b and c of the three quadratics written out.
    h, w = torch.tensor([3.0], dtype=torch.float64), torch.tensor([6.0], dtype=torch.float64)
    expected = {
        "centerpoint1": (9 + math.sqrt(81 - 4 * 18 * 0.9 / 1.1)) / 2,
        "centerpoint2": (18 + math.sqrt(324 - 16 * 0.9 * 18)) / 2,
        "centerpoint3": (-1.8 + math.sqrt(3.24 + 1.6 * 0.9 * 18)) / 2,
        "maxwh": 6.0,
    }
    for name, value in expected.items():
        assert RADII[name](h, w, 0.1).item() == pytest.approx(value, rel=1e-9)
    assert heatmap_radius(h, w, 0.1).item() == pytest.approx(expected["centerpoint3"], rel=1e-9)


def drawn_one_by_one(boxes: Tensor, channel: list[int], channels: int, grid: BevGrid, overlap: float) -> np.ndarray:
    """A heatmap as CenterPoint's targets are drawn: box by box, cell by cell."""
    canvas = np.zeros((channels, *grid.shape))
    for box, plane in zip(boxes.double().numpy(), channel, strict=True):
        w, h = box[3] / grid.cell_m[0], box[4] / grid.cell_m[1]
        column = math.floor((box[0] - grid.x_range_m[0]) / grid.cell_m[0])
        row = math.floor((box[1] - grid.y_range_m[0]) / grid.cell_m[1])
        if not (0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]):
            continue
        r1 = (h + w + math.sqrt((h + w) ** 2 - 4 * w * h * (1 - overlap) / (1 + overlap))) / 2
        r2 = (2 * (h + w) + math.sqrt(4 * (h + w) ** 2 - 16 * (1 - overlap) * w * h)) / 2
        b3 = -2 * overlap * (h + w)
        r3 = (b3 + math.sqrt(b3**2 - 16 * overlap * (overlap - 1) * w * h)) / 2
        radius = max(2, int(min(r1, r2, r3)))
        sigma = (2 * radius + 1) / 6
        for y in range(max(0, row - radius), min(grid.shape[0], row + radius + 1)):
            for x in range(max(0, column - radius), min(grid.shape[1], column + radius + 1)):
                value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                canvas[plane, y, x] = max(canvas[plane, y, x], value)
    return canvas


def test_heatmaps_agree_with_drawing_one_by_one() -> None:
    samples = random_boxes(25, GRID, 3, largest_m=12.0), random_boxes(11, GRID, 4, largest_m=12.0)
    channels = torch.arange(25) % 3, torch.arange(11) % 3
    padded = torch.zeros(2, 25, dtype=torch.long)
    padded[0], padded[1, :11] = channels
    found = draw_heatmaps(pad_boxes(samples), padded, 3, GRID)
    for sample in range(2):
        expected = drawn_one_by_one(samples[sample], channels[sample].tolist(), 3, GRID, overlap=0.1)
        np.testing.assert_allclose(found[sample].numpy(), expected, atol=1e-6)


def test_heatmaps_without_boxes_are_empty() -> None:
    found = draw_heatmaps(pad_boxes((torch.zeros(0, 9),)), torch.zeros(1, 0, dtype=torch.long), 4, GRID)
    assert found.shape == (1, 4, *GRID.shape)
    assert not found.any()


def test_a_device_draws_the_same_without_looking_at_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = pad_boxes((random_boxes(12, GRID, 5, largest_m=9.0),))
    radius = whole_radius(heatmap_radius(*sides_in_cells(boxes, GRID), 0.1), 2)
    channel = torch.zeros_like(radius)
    here = stamp(gaussian, boxes, radius, channel, 1, GRID)
    whole = lambda center, radius, size: torch.arange(size).expand(*center.shape, size)  # noqa: E731
    monkeypatch.setattr("student.distill.boxes._window", whole)
    assert torch.equal(here, stamp(gaussian, boxes, radius, channel, 1, GRID))
