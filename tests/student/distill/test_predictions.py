import pytest
import torch

from student.distill.predictions import clipped_sigmoid
from student.distill.regions import CLIP


def test_clipped() -> None:
    found = clipped_sigmoid(torch.tensor([[[[-50.0, 0.0, 50.0]]]]))
    assert found.flatten().tolist() == pytest.approx([CLIP, 0.5, 1 - CLIP])
