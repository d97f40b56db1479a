import pytest
import torch

from student.distill.regions import region_decomposition
from student.distill.terms.s2m2_heatmap import s2m2_heatmap


def test_s2m2_heatmap_by_hand() -> None:
    #                           TP    FP    FN   TN
    student = torch.tensor([[[[0.8, 0.6, 0.02, 0.0]], [[0.1, 0.2, 0.0, 0.05]]]])
    teacher = torch.tensor([[[[0.9, 0.1, 0.5, 0.4]], [[0.2, 0.0, 0.7, 0.0]]]])
    truth = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    regions = region_decomposition(student, truth, 0.1)
    right, wrong = s2m2_heatmap(student, teacher, regions, "mse")
    assert right.item() == pytest.approx(0.1**2, rel=1e-5)
    # Both sides are masked: the true negative, where the teacher says 0.4, does not count.
    assert wrong.item() == pytest.approx((0.5**2 + 0.68**2) / 2, rel=1e-5)
