import torch

from student.distill.terms.base import masked_sum


def test_masked_sum_by_hand() -> None:
    error, weight = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]], [[0.5, 2.0]]])
    assert masked_sum(error, weight).item() == (1 + 1.5 + 8) / 2
