import numpy as np
import pytest
import torch
from torch import Tensor

from student.distill.feature_stats import feature_stats
from student.distill.terms.fitnet import half_squared_distance


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_fitnet_is_half_the_squared_distance_of_a_sample(pair: tuple[Tensor, Tensor]) -> None:
    expected = sum(0.5 * np.linalg.norm((s - t).numpy()) ** 2 for s, t in zip(*pair, strict=True)) / 3
    assert half_squared_distance(feature_stats(*pair)).item() == pytest.approx(expected, rel=1e-5)
