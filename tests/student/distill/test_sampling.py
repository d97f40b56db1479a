import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cache.geometry.grid import BevGrid
from cache.spec import CodecSpec
from cache.store.codec import Encoded, encode
from student.distill.sampling import Corners, Sums, SumsOverPoints, even_parts, points_in_boxes
from tests.factories.distill import make_box

# H != W, cells of different sides, and not centred at 0.
GRID = BevGrid(x_range_m=(-2.0, 4.0), y_range_m=(1.0, 5.0), cell_m=(1.0, 0.5))


def read(corners: Corners, maps: Tensor | Encoded) -> Tensor:
    """The features at the points, (B, P, C)."""
    found = []
    for index, places in enumerate(corners.places(GRID.shape[0] * GRID.shape[1])):
        if isinstance(maps, Encoded):
            stored = maps.apply(lambda part, row=index: part[row])
            found.append(places.read(stored.values, stored))
        else:
            found.append(places.read(maps[index], None))
    return torch.stack(found)


def test_bilinear_by_hand() -> None:
    maps = torch.arange(48.0).view(1, 1, 8, 6)
    # A cell's centre, the middle of four cells, and a quarter of the way along a row.
    points = torch.tensor([[[-1.5, 1.25], [-1.0, 1.5], [-1.25, 1.25]]])
    found = read(Corners.of(points, GRID), maps)
    assert found.flatten().tolist() == [0.0, (0 + 1 + 6 + 7) / 4, 0.25]


def test_points_are_those_of_grid_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 20, 2, generator=generator, dtype=torch.float64) * torch.tensor([4.9, 3.4]) + torch.tensor(
        [-1.45, 1.3]
    )
    unit = (points - torch.tensor([-2.0, 1.0])) / torch.tensor([3.0, 2.0]) - 1
    expected = F.grid_sample(maps, unit[:, None], align_corners=False)[:, :, 0].mT
    torch.testing.assert_close(read(Corners.of(points, GRID), maps), expected)


@pytest.mark.parametrize("companding", [1.0, 0.5])
def test_stored_features_are_decoded_where_they_are_read(companding: float) -> None:
    stored = encode(torch.randn(1, 3, 8, 6).relu(), CodecSpec(companding=companding, min_sqnr_db=0))
    corners = Corners.of(torch.tensor([[[0.2, 2.2], [1.7, 3.1]]]), GRID)
    torch.testing.assert_close(read(corners, stored), read(corners, stored.decode()))


def test_points_with_a_cell_beyond_the_map_or_an_invalid_one_are_outside() -> None:
    valid = torch.ones(1, 8, 6, dtype=torch.bool)
    valid[:, 2, 3] = False
    # Half a cell from the edge, on the centre of the first cell, beside the invalid cell, and on it.
    points = torch.tensor([[[-1.9, 2.0], [-1.5, 1.25], [1.2, 2.25], [1.5, 2.25]]])
    corners = Corners.of(points, GRID, valid)
    assert corners.inside.tolist() == [[False, True, False, False]]
    assert read(corners, torch.ones(1, 2, 8, 6))[0, :, 0].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_points_of_a_box() -> None:
    """Length 4 along +y (yaw 90 degrees), width 2."""
    box = make_box(1.0, 3.0, 4.0, 2.0, math.pi / 2)[None].double()
    points = points_in_boxes(box, even_parts(3, 3, box.device))[0, 0]
    expected = {(x, y) for x in (0.0, 1.0, 2.0) for y in (1.0, 3.0, 5.0)}
    assert {(round(x, 6), round(y, 6)) for x, y in points.tolist()} == expected
    wide = points_in_boxes(box, even_parts(2, 2, box.device), enlarge_m=0.5)[0, 0]
    assert {(round(x, 6), round(y, 6)) for x, y in wide.tolist()} == {(x, y) for x in (-0.5, 2.5) for y in (0.5, 5.5)}


def naive_point(maps: Tensor, x: float, y: float) -> Tensor | None:
    """One sample's features (C, H, W) at a point; None where a cell of any weight is not on the map."""
    column, row = (x - GRID.x_range_m[0]) / GRID.cell_m[0] - 0.5, (y - GRID.y_range_m[0]) / GRID.cell_m[1] - 0.5
    total = torch.zeros(len(maps), dtype=maps.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            share = (1 - abs(row - r)) * (1 - abs(column - c))
            if share > 0 and not (0 <= r < maps.shape[1] and 0 <= c < maps.shape[2]):
                return None
            if share > 0:
                total = total + share * maps[:, r, c]
    return total


def test_points_by_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(1, 3, 8, 6, generator=generator, dtype=torch.float64)
    points = torch.rand(1, 50, 2, generator=generator, dtype=torch.float64) * 8 + torch.tensor([-3.0, 0.0])
    corners = Corners.of(points, GRID)
    for inside, found, (x, y) in zip(corners.inside[0], read(corners, maps)[0], points[0].tolist(), strict=True):
        expected = naive_point(maps[0], x, y)
        assert bool(inside) == (expected is not None)
        torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected)


def by_autograd(sums: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> Sums:
    """Sums with the gradients that autograd finds."""

    def with_gradients(first: Tensor, second: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            first = first.detach().requires_grad_()
            values = sums(first, second, inside)
        gradients = [torch.autograd.grad(value, first, retain_graph=True)[0] for value in values]
        return torch.stack(values).detach(), torch.stack(gradients)

    return with_gradients


def test_sums_over_points_by_plain_autograd() -> None:
    """Two sums of 3 boxes of 4 points, of two samples of which one has fewer cells; gradients of both sides."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    points = torch.rand(2, 12, 2, generator=generator, dtype=torch.float64) * torch.tensor([6.0, 4.0])
    points[0] = points[0] / 3 + torch.tensor([1.0, 1.0])
    corners = Corners.of(points + torch.tensor([-2.0, 1.0]), GRID)
    assert corners.inside.any() and not corners.inside.all()
    inside = corners.inside.view(2, 3, 4)

    def sums(first: Tensor, second: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        product = (first @ second.mT).square()
        return product.sum(), ((first - second).abs().sum(dim=-1) * known).sum()

    def found(student: Tensor, teacher: Tensor) -> Tensor:
        return SumsOverPoints.apply(student, teacher, None, corners, (3, 4), by_autograd(sums))

    at = [read(corners, maps).unflatten(1, (3, 4)) for maps in (student, teacher)]
    assert found(student, teacher).tolist() == pytest.approx([value.item() for value in sums(*at, inside)])
    sides = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(found, sides)
    (only,) = torch.autograd.grad(found(student, teacher.detach())[0], student)
    assert only.any()


def test_stored_features_have_the_sums_of_decoded_ones() -> None:
    student, stored = torch.randn(1, 3, 8, 6), encode(torch.randn(1, 3, 8, 6).relu(), CodecSpec(min_sqnr_db=0))
    corners = Corners.of(torch.tensor([[[0.2, 2.2], [1.7, 3.1]]]), GRID)
    sums = by_autograd(lambda first, second, _: ((first - second).square().sum(),))
    encoded = SumsOverPoints.apply(student, stored.values, stored, corners, (1, 2), sums)
    torch.testing.assert_close(encoded, SumsOverPoints.apply(student, stored.decode(), None, corners, (1, 2), sums))
