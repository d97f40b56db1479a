import math

import pytest
import torch

from student.distill.terms.gauss_focal import gauss_focal


def test_gauss_focal_by_hand() -> None:
    student, teacher = torch.tensor([[[[0.5, 0.1]]]]), torch.tensor([[[[0.0, 0.5]]]])
    expected = -math.log(0.5) * 0.25 - math.log(0.9) * 0.01 * 0.5**4
    assert gauss_focal(student, teacher, torch.tensor(0.0)).item() == pytest.approx(expected, rel=1e-5)
    assert gauss_focal(student, teacher, torch.tensor(4.0)).item() == pytest.approx(expected / 4, rel=1e-5)
