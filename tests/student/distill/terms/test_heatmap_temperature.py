import numpy as np
import pytest
import torch

from student.distill.terms.heatmap_temperature import SOFTENED


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def test_softened_heatmaps_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    s, t, tau = student.double().numpy(), teacher.double().numpy(), 2.5
    p, q = softmax(t / tau, 1), softmax(s / tau, 1)
    weight = 1 / (1 + np.exp(-t.max(1)))
    classes = ((p * np.log(p / q)).sum(1) * weight).sum() / weight.sum() * tau**2
    p, q = softmax(t.reshape(2, 3, 20) / tau, 2), softmax(s.reshape(2, 3, 20) / tau, 2)
    cells = (p * np.log(p / q)).sum(2).mean() * tau**2
    p, q = 1 / (1 + np.exp(-t / tau)), 1 / (1 + np.exp(-s / tau))
    each = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean() * tau**2
    for name, expected in {"classes": classes, "cells": cells, "each": each}.items():
        assert SOFTENED[name](student, teacher, tau).item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("over", SOFTENED)
def test_softened_heatmaps_pull_the_student_to_the_teacher(over: str) -> None:
    student, teacher = torch.zeros(1, 3, 4, 4, requires_grad=True), 3 * torch.randn(1, 3, 4, 4)
    assert SOFTENED[over](teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
    before = SOFTENED[over](student, teacher, 2.0)
    before.backward()
    assert SOFTENED[over]((student - 0.5 * student.grad).detach(), teacher, 2.0) < before
