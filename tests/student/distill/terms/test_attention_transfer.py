import math

import numpy as np
import pytest
import torch
from torch import Tensor

from student.distill.terms.attention_transfer import activation_map, attention_transfer


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_attention_transfer(pair: tuple[Tensor, Tensor]) -> None:
    def unit_map(x: np.ndarray) -> np.ndarray:
        flat = (np.abs(x) ** 3).sum(1).reshape(3, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    student, teacher = (x.double().numpy() for x in pair)
    expected = np.square(unit_map(student[:, :2]) - unit_map(teacher)).mean()
    assert attention_transfer(pair[0][:, :2], pair[1], 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_activation_map_by_hand() -> None:
    features = torch.tensor([[[[1.0, 0.0]], [[-1.0, 2.0]]]])
    assert torch.allclose(activation_map(features, 2.0), torch.tensor([[2.0, 4.0]]) / math.sqrt(20))
    assert torch.allclose(activation_map(features, 1.0), torch.tensor([[2.0, 2.0]]) / math.sqrt(8))
    assert not activation_map(torch.zeros(1, 2, 1, 2), 2.0).any()
