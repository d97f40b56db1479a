import pytest
import torch
from torch import Tensor

from student.distill.terms.tigbev_features import channel_distance, keypoint_distance


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    """Two samples of three boxes of four points of six channels; a point is not inside, a channel is 0 in a box."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    inside = torch.ones(2, 3, 4, dtype=torch.bool)
    inside[0, 1, 2] = False
    teacher[1, 2, :, 3] = 0
    return student * inside[..., None], teacher * inside[..., None], inside


def unit_rows(matrix: Tensor) -> list[list[float]]:
    return [[value / (sum(v * v for v in row) ** 0.5) for value in row] for row in matrix.tolist() if any(row)]


def test_keypoints_by_loops(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, inside = points
    rows = []
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        pairs = zip(unit_rows(s @ s.T), unit_rows(t @ t.T), strict=True)
        rows += [sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]
    assert len(rows) == inside.sum() == 23
    grams = student @ student.mT, teacher @ teacher.mT
    assert keypoint_distance(*grams, inside).item() == pytest.approx(sum(rows) / len(rows), rel=1e-9)


def test_channels_by_loops(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = points
    rows = []
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        for ours, theirs in zip((s.T @ s).tolist(), (t.T @ t).tolist(), strict=True):
            if any(ours) and any(theirs):
                (a,), (b,) = unit_rows(torch.tensor([ours]).double()), unit_rows(torch.tensor([theirs]).double())
                rows.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    assert len(rows) == 2 * 3 * 6 - 1
    found = channel_distance(student, teacher, student @ student.mT, teacher @ teacher.mT)
    assert found.item() == pytest.approx(sum(rows) / len(rows), rel=1e-6)


def test_equal_features_have_no_distance(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, inside = points
    gram = student @ student.mT
    assert keypoint_distance(gram, 4 * gram, inside).item() == pytest.approx(0, abs=1e-12)
    assert channel_distance(student, 2 * student, gram, 4 * gram).item() == pytest.approx(0, abs=1e-12)
