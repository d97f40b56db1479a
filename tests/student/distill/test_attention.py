import math

import pytest
import torch

from student.distill.attention import joint_attention, spatial_attention


def test_spatial_attention_by_hand() -> None:
    energy = torch.tensor([[[0.0, math.log(2.0)], [0.0, 0.0]]])
    expected = torch.tensor([[[0.8, 1.6], [0.8, 0.8]]])
    assert torch.allclose(spatial_attention(energy, 1.0), expected)
    # Half the temperature squares the ratios.
    assert spatial_attention(energy, 0.5)[0, 0, 1].item() == pytest.approx(16 / 7)


def test_joint_attention_by_hand() -> None:
    teacher, student = torch.tensor([[[0.0, math.log(3.0)]]]), torch.tensor([[[math.log(3.0), 0.0]]])
    assert joint_attention("none", teacher, student, 1.0).tolist() == [[[1.0, 1.0]]]
    assert torch.allclose(joint_attention("teacher", teacher, student, 1.0), torch.tensor([[[0.5, 1.5]]]))
    assert torch.allclose(joint_attention("teacher_student", teacher, student, 1.0), torch.ones(1, 1, 2))
    uneven = joint_attention("teacher_student", teacher, student, 1.0, student_ratio=0.25)
    assert torch.allclose(uneven, torch.tensor([[[(0.5 + 0.25 * 1.5) / 1.25, (1.5 + 0.25 * 0.5) / 1.25]]]))


def test_attention_takes_no_gradient() -> None:
    energy = torch.rand(1, 2, 2, requires_grad=True)
    assert not joint_attention("teacher_student", energy, energy, 0.5).requires_grad
