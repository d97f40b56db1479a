import pytest
import torch
from torch import Tensor

from student.distill.feature_stats import feature_stats
from student.distill.terms.all import mean_over_elements


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_all_cells(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    assert mean_over_elements(feature_stats(*pair, "l1")).item() == pytest.approx(
        (student - teacher).abs().mean().item()
    )
    assert mean_over_elements(feature_stats(*pair, "mse")).item() == pytest.approx(
        (student - teacher).square().mean().item()
    )
