"""The gradients of detection losses and of the teacher's terms, by hand."""

import pytest
import torch

from student.training.gradients import compare_gradients


def test_norms_ratio_and_cosine() -> None:
    shared, own = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    terms = {"heatmap": 3 * shared[0], "boxes": 4 * own, "distill/fgd": 6 * shared[0] + 8 * shared[1]}
    found = compare_gradients(terms, [shared, own])
    # (3, 0, 4) and (6, 8, 0): of lengths 5 and 10, and 18 their product.
    expected = {"detection": 5.0, "distill": 10.0, "ratio": 2.0, "cosine": 18 / 50}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {f"gradients/{name}": value for name, value in expected.items()}
    )
    torch.stack(list(terms.values())).sum().backward()  # the graph is still there
    assert shared.grad is not None


def test_a_term_without_a_gradient_has_the_norm_0() -> None:
    weight = torch.tensor([1.0], requires_grad=True)
    found = compare_gradients({"heatmap": weight.sum(), "distill/fgd": torch.tensor(2.0)}, [weight])
    assert found["gradients/distill"].item() == found["gradients/ratio"].item() == 0
    assert found["gradients/cosine"].item() == 0
