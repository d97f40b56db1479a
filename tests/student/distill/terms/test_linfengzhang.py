import numpy as np
import pytest
import torch
from torch import Tensor

from student.distill.feature_stats import feature_stats
from student.distill.terms.linfengzhang import attended_distance, distance


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_attended_distance(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (x.double().numpy() for x in pair)

    def attention(values: np.ndarray, temperature: float) -> np.ndarray:
        powers = np.exp(values / temperature)
        return powers / powers.sum() * values.size

    parts = [
        np.sqrt(
            np.sum(
                (s - t) ** 2 * attention(np.abs(t).mean(0), 0.3) * attention(np.abs(t).mean((1, 2)), 0.2)[:, None, None]
            )
        )
        for s, t in zip(student, teacher, strict=True)
    ]
    found = attended_distance(feature_stats(*pair, "mse", 0.2), 0.3)
    assert found.item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_distances_of_equal_maps_have_a_finite_gradient(pair: tuple[Tensor, Tensor]) -> None:
    student = pair[0].clone().requires_grad_()
    found = feature_stats(student, pair[0])
    (attended_distance(found, 0.1) + distance(found.student_channels, found.teacher_channels)).backward()
    assert not student.grad.any()
