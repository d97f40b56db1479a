import pytest
import torch
from torch import Tensor

from student.distill.terms.tigbev_features import BOXES, similarity_sums


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    """Twelve boxes of four points of six channels; points are not inside, a channel is 0 in a box."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(12, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    inside = torch.ones(12, 4, dtype=torch.bool)
    inside[1, 2] = inside[10] = False
    teacher[5, :, 3] = 0
    assert len(student) % BOXES and len(student) > BOXES
    return student * inside[..., None], teacher * inside[..., None], inside


def unit_rows(matrix: Tensor) -> Tensor:
    length = matrix.norm(dim=-1, keepdim=True)
    return matrix / torch.where(length > 0, length, 1.0)


def by_definition(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows of Q x Q and of C x C similarities, box by box; and the number of channels that count."""
    keypoint, channel, count = student.new_zeros(()), student.new_zeros(()), 0
    for s, t in zip(student, teacher, strict=True):
        keypoint = keypoint + (unit_rows(s @ s.T) - unit_rows(t @ t.T)).square().sum()
        for ours, theirs in zip(s.T @ s, t.T @ t, strict=True):
            if ours.any() and theirs.any():
                count += 1
                channel = channel + (ours / ours.norm() - theirs / theirs.norm()).square().sum()
    return keypoint, channel, count


def test_values_by_definition(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = points
    found, _ = similarity_sums(*points)
    keypoint, channel, count = by_definition(student, teacher)
    assert count == 11 * 6 - 1
    assert found.tolist() == pytest.approx([keypoint.item(), channel.item(), count], rel=1e-9)


def test_two_points_of_two_channels_by_hand() -> None:
    """F = 1, H = ((1, 1), (0, 1)): H H^T = ((2, 1), (1, 1)), H^T H = ((1, 1), (1, 2)); those of F are 1."""
    student, teacher = torch.eye(2)[None], torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    rows = (2 - 2 * 2 / 5**0.5) + (2 - 2 * 1 / 2**0.5)
    found, _ = similarity_sums(student, teacher, torch.ones(1, 2, dtype=torch.bool))
    assert found.tolist() == pytest.approx([rows, rows, 2])


def test_gradients_are_those_of_the_definition(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = points
    _, gradients = similarity_sums(*points)
    leaf = student.clone().requires_grad_()
    for value, gradient in zip(by_definition(leaf, teacher)[:2], gradients, strict=True):
        (expected,) = torch.autograd.grad(value, leaf)
        there = (student != 0).any(dim=-1)  # F F^T of a point outside has rows of length 0, which have no gradient.
        torch.testing.assert_close(gradient[there], expected[there])


@pytest.mark.parametrize(("keypoints", "channels"), [(True, False), (False, True)])
def test_one_part_alone(points: tuple[Tensor, Tensor, Tensor], keypoints: bool, channels: bool) -> None:
    both, gradients = similarity_sums(*points)
    found, (gradient,) = similarity_sums(*points, keypoints=keypoints, channels=channels)
    assert found[0] == both[0 if keypoints else 1]
    assert torch.equal(gradient, gradients[0 if keypoints else 1])


def test_equal_features_have_no_distance(points: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, inside = points
    found, gradients = similarity_sums(student, 2 * student, inside)
    assert found[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert gradients.abs().max() < 1e-12


def test_large_and_small_features_keep_their_cosines() -> None:
    """The squared lengths of rows of similarities are fourth powers of features: their products leave float32."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 4, 6, generator=generator) for _ in range(2))
    inside = torch.ones(1, 4, dtype=torch.bool)
    expected, _ = similarity_sums(student, teacher, inside)
    for factor in (1e4, 1e-4):
        found, gradients = similarity_sums(factor * student, factor * teacher, inside)
        torch.testing.assert_close(found, expected)
        assert gradients.isfinite().all() and gradients.any()
