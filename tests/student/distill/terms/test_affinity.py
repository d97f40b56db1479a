import numpy as np
import pytest
import torch

from student.distill.terms.affinity import affinity


def smooth_l1(difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def test_affinity_by_hand() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Gram matrices [[1, 2], [2, 4]] and [[1, 0], [0, 1]]: differences 0, 2, 2, 3.
    assert affinity(student, teacher, "l1").item() == 7 / 4
    assert affinity(student, teacher, "smooth_l1").item() == (1.5 + 1.5 + 2.5) / 4


def test_affinity_of_a_batch_is_the_mean_over_samples() -> None:
    student, teacher = torch.randn(3, 7, 4), torch.randn(3, 7, 5)
    parts = [affinity(s, t) for s, t in zip(student, teacher, strict=True)]
    assert affinity(student, teacher).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


def test_affinity_in_groups_of_one_cell_is_the_difference_of_the_diagonals() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    expected = smooth_l1((student.square().sum(1) - teacher.square().sum(1)).numpy()).mean()
    assert affinity(student, teacher, split=6).item() == pytest.approx(expected, rel=1e-5)
    assert affinity(student, teacher, split=60).item() == pytest.approx(expected, rel=1e-5)
