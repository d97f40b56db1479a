import math

import pytest
import torch

from cache.geometry.grid import BevGrid
from student.fidelity.similarity import Similarity, similarity, split_regions, total

GRID = BevGrid(x_range_m=(-4.0, 4.0), y_range_m=(-2.0, 2.0), cell_m=(1.0, 1.0))


def test_closeness_by_hand() -> None:
    reference = torch.tensor([[[[3.0, 1.0]], [[4.0, 9.0]]]])
    found = torch.tensor([[[[3.0, 1.0]], [[0.0, 7.0]]]])
    first = similarity(found, reference, torch.tensor([[[True, False]]]))
    assert first == Similarity(cells=1, signal=25.0, other=9.0, product=9.0, noise=16.0)
    assert first.relative_error == pytest.approx(4 / 5)
    assert first.cosine == pytest.approx(9 / (5 * 3))
    both = similarity(found, reference, torch.tensor([[[True, True]]]))
    assert total([first, similarity(found, reference, torch.tensor([[[False, True]]]))]) == both
    nothing = similarity(found, reference, torch.tensor([[[False, False]]]))
    assert math.isnan(nothing.relative_error)
    assert math.isnan(nothing.cosine)


def test_every_cell_is_in_one_region() -> None:
    heatmap = torch.zeros(1, 2, 4, 8)
    heatmap[0, 1, 0, 0] = heatmap[0, 0, 2, 5] = 0.5
    box = torch.tensor([[[1.0, 0.5, 0, 2.0, 1.0, 1, 0, 0, 0]]])  # columns 4 and 5 of row 2
    regions = split_regions(heatmap, box, GRID)
    assert sum(region.int() for region in regions.values()).eq(1).all()
    assert regions["foreground"].nonzero().tolist() == [[0, 2, 4], [0, 2, 5]]
    assert regions["false positives"].nonzero().tolist() == [[0, 0, 0]]
