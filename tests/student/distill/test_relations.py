import numpy as np
import pytest
import torch

from student.distill.relations import NonLocal, affinity, attended_cells, selected_affinity


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


def test_selected_affinity_sums_samples_and_skips_those_without_cells() -> None:
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    selected = torch.zeros(2, 4, 5, dtype=torch.bool)
    selected[0, 1, 2:4] = selected[0, 3, 0] = True
    s, t = student[0][:, selected[0]].detach().numpy(), teacher[0][:, selected[0]].numpy()
    found = selected_affinity(student, teacher, selected)
    assert found.item() == pytest.approx(smooth_l1(s.T @ s - t.T @ t).mean(), rel=1e-5)
    found.backward()
    assert not student.grad[1].any()


def test_attended_cells() -> None:
    attention = torch.tensor([[[0.5, 2.0], [1.5, 0.0]]])
    assert attended_cells(attention, top_k=2).tolist() == [[[False, True], [True, False]]]
    assert attended_cells(attention, top_k=9).all()
    assert attended_cells(attention, top_k=1, threshold=0.12).tolist() == [[[True, True], [True, False]]]


def test_non_local_starts_as_the_identity() -> None:
    features = torch.randn(2, 4, 3, 5)
    assert torch.equal(NonLocal(4)(features), features)


def test_non_local_by_its_definition() -> None:
    block = NonLocal(4).eval()
    torch.nn.init.normal_(block.norm.weight)
    features = torch.randn(2, 4, 3, 5)
    theta, phi, g = (layer(features).flatten(2) for layer in (block.theta, block.phi, block.g))
    mixed = (theta.mT @ phi / 15) @ g.mT
    expected = features + block.norm(block.out(mixed.mT.reshape(2, 2, 3, 5)))
    torch.testing.assert_close(block(features), expected)


def test_non_local_of_a_single_channel() -> None:
    assert NonLocal(1)(torch.randn(2, 1, 3, 3)).shape == (2, 1, 3, 3)
