import math

import pytest
import torch

from student.distill.feature_stats import feature_stats
from student.distill.terms.bevdistill_feature import weighted_mean


def test_the_mean_of_the_cells_by_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(2, 4, 5, generator=generator)
    total = norm = 0.0
    for b in range(2):
        for row in range(4):
            for column in range(5):
                w = weight[b, row, column].item()
                total += w * sum(
                    (student[b, c, row, column] - teacher[b, c, row, column]).item() ** 2 for c in range(3)
                )
                norm += w
    assert weighted_mean(feature_stats(student, teacher), weight).item() == pytest.approx(total / norm, rel=1e-6)


def test_no_weight_gives_zero() -> None:
    student = torch.randn(1, 2, 3, 3, requires_grad=True)
    value = weighted_mean(feature_stats(student, torch.zeros(1, 2, 3, 3)), torch.zeros(1, 3, 3))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None and math.isfinite(student.grad.sum().item())
