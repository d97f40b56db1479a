import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.boxes import pad_boxes
from student.distill.gaussians import (
    box_sides,
    draw_at_boxes,
    draw_heatmaps,
    draw_patches,
    gaussian,
    gaussian_radius,
    named_radius,
)
from tests.factories.distill import random_boxes

# Higher than wide, cells that are not square, a range that is not centred at 0.
GRID = BevGrid(x_range_m=(-4.0, 12.0), y_range_m=(2.0, 22.0), cell_m=(0.8, 0.5))


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
        assert named_radius(name, h, w).item() == pytest.approx(value, rel=1e-9)
    assert gaussian_radius(h, w, 0.1).item() == pytest.approx(expected["centerpoint3"], rel=1e-9)


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
    radius = gaussian_radius(*box_sides(boxes, GRID), 0.1)
    channel = torch.zeros_like(radius, dtype=torch.long)
    here = draw_at_boxes(gaussian, boxes, radius, channel, 1, GRID)
    whole = lambda center, radius, size: torch.arange(size).expand(len(center), size)  # noqa: E731
    monkeypatch.setattr("student.distill.gaussians._window", whole)
    assert torch.equal(here, draw_at_boxes(gaussian, boxes, radius, channel, 1, GRID))


def test_radius_by_hand() -> None:
    """Length 8, width 4, overlap 0.1: the third case is the least, (-2.4 + sqrt(2.4^2 + 4 * 0.4 * 28.8)) / 2 = 2.4."""
    radius = gaussian_radius(torch.tensor([8.0]), torch.tensor([4.0]), 0.1)
    assert radius.item() == pytest.approx(2.4)


def test_planes_do_not_mix() -> None:
    zero = torch.tensor([0, 0])
    heat = draw_patches(gaussian, torch.tensor([0, 2]), torch.tensor([0, 1]), zero, torch.tensor([1.0, 1.0]), (3, 2, 2))
    assert (heat == 1).nonzero().tolist() == [[0, 0, 0], [2, 1, 0]]
    assert not heat[1].any()
