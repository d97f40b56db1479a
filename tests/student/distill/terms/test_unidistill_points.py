from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from student.distill.terms.unidistill_points import feature_distance, pairs_of, relation_distance


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    """Six boxes of nine points of five channels; some points are not inside."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    inside = torch.rand(6, 9, generator=generator) > 0.2
    return student * inside[..., None], teacher * inside[..., None], inside


def test_features_by_loops(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, inside = points
    errors = []
    for index in inside.nonzero().tolist():
        s, t = (maps[tuple(index)] for maps in (student, teacher))
        errors.append(sum(abs(a - b) for a, b in zip(s.tolist(), t.tolist(), strict=True)) / 5)
    assert feature_distance(*points)[0].item() == pytest.approx(sum(errors), rel=1e-12)


def test_relations_by_loops(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, inside = points

    def cosine(maps: Tensor, i: int, j: int) -> float:
        return (maps[i] @ maps[j] / (maps[i].norm() * maps[j].norm())).item()

    errors = []
    for s, t, there in zip(student, teacher, inside, strict=True):
        chosen = [index for index in range(9) if there[index]]
        errors += [abs(cosine(s, i, j) - cosine(t, i, j)) for i in chosen for j in chosen]
    assert relation_distance(*points)[0].item() == pytest.approx(sum(errors), rel=1e-9)
    assert pairs_of(points[2]).sum() == len(errors)


@pytest.mark.parametrize("distance", [feature_distance, relation_distance])
def test_gradients_are_those_of_autograd(points: tuple[Tensor, Tensor, Tensor], distance: Callable) -> None:
    student, teacher, inside = points
    leaf = student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(distance(leaf, teacher, inside)[0], leaf)
    torch.testing.assert_close(distance(*points)[1] * inside[..., None], expected * inside[..., None])


def test_no_point_gives_zero() -> None:
    none = torch.zeros(0, 9, 5)
    for distance in (feature_distance, relation_distance):
        value, gradient = distance(none, none, torch.zeros(0, 9, dtype=torch.bool))
        assert (value.item(), gradient.shape) == (0, none.shape)
