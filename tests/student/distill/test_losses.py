import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.distill import losses
from student.distill.feature_stats import moments


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_all_cells(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    assert losses.all_cells(moments(*pair, "l1")).item() == pytest.approx((student - teacher).abs().mean().item())
    assert losses.all_cells(moments(*pair, "mse")).item() == pytest.approx((student - teacher).square().mean().item())


def test_fitnet_is_half_the_squared_distance_of_a_sample(pair: tuple[Tensor, Tensor]) -> None:
    expected = sum(0.5 * np.linalg.norm((s - t).numpy()) ** 2 for s, t in zip(*pair, strict=True)) / 3
    assert losses.fitnet(moments(*pair)).item() == pytest.approx(expected, rel=1e-5)


def test_masked_sum_by_hand() -> None:
    error, weight = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]], [[0.5, 2.0]]])
    assert losses.masked_sum(error, weight).item() == (1 + 1.5 + 8) / 2


def test_channel_and_spatial_terms(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (x.double().numpy() for x in pair)
    adapter = nn.Conv2d(1, 1, 3, padding=1)
    found = moments(*pair)
    expected = np.abs(student.mean((2, 3)) - teacher.mean((2, 3))).sum() / 3
    assert losses.channel_term(found, "l1").item() == pytest.approx(expected, rel=1e-5)
    moved = adapter(pair[0].mean(1, keepdim=True))[:, 0].detach().double().numpy()
    expected = np.square(moved - teacher.mean(1)).sum() / 3
    assert losses.spatial_term(found, adapter, "mse").item() == pytest.approx(expected, rel=1e-5)


def test_attention_transfer(pair: tuple[Tensor, Tensor]) -> None:
    def unit_map(x: np.ndarray) -> np.ndarray:
        flat = (np.abs(x) ** 3).sum(1).reshape(3, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    student, teacher = (x.double().numpy() for x in pair)
    expected = np.square(unit_map(student[:, :2]) - unit_map(teacher)).mean()
    assert losses.attention_transfer(pair[0][:, :2], pair[1], 3.0).item() == pytest.approx(expected, rel=1e-5)


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
    found = losses.attended_distance(moments(*pair, "mse", 0.2), 0.3)
    assert found.item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_distances_of_equal_maps_have_a_finite_gradient(pair: tuple[Tensor, Tensor]) -> None:
    student = pair[0].clone().requires_grad_()
    found = moments(student, pair[0])
    (losses.attended_distance(found, 0.1) + losses.distance(found.student_channels, found.teacher_channels)).backward()
    assert not student.grad.any()


def test_mean_within_by_hand() -> None:
    error = torch.tensor([[[2.0, 4.0]], [[6.0, 8.0]], [[1.0, 1.0]]])
    region = torch.tensor([[[True, True]], [[False, True]], [[False, False]]])
    # Means 3 and 8 over the two samples that have cells; two channels halve them.
    assert losses.mean_within(error, region).item() == 5.5
    assert losses.mean_within(error, region, channels=2).item() == 2.75
    assert losses.mean_within(error, torch.zeros_like(region)).item() == 0.0
