import pytest
import torch

from cache.errors import ConfigError
from student.distill.regions import (
    false_positives,
    max_over_classes,
    mean_within,
    region_decomposition,
    region_scale,
    resize_map,
)


def test_decomposition_by_hand() -> None:
    predicted = torch.tensor([[[[0.9, 0.05, 0.2, 0.0]], [[0.0, 0.3, 0.0, 0.1]]]])
    truth = torch.tensor([[[[1.0, 0.0, 0.0, 0.4]], [[0.0, 0.05, 0.0, 0.0]]]])
    regions = region_decomposition(predicted, truth, threshold=0.1)
    assert regions.true_positive.tolist() == [[[True, False, False, False]]]
    assert regions.false_positive.tolist() == [[[False, True, True, False]]]
    assert regions.false_negative.tolist() == [[[False, False, False, True]]]
    assert not regions.true_negative.any()


def test_decomposition_with_a_threshold_for_the_truth() -> None:
    predicted, truth = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.3, 0.7]]])
    regions = region_decomposition(predicted, truth, threshold=0.1, truth_threshold=0.6)
    assert regions.false_positive.tolist() == [[[True, False]]]
    assert regions.true_positive.tolist() == [[[False, True]]]


def test_every_cell_is_in_one_region() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.rand(2, 3, 5, 7, generator=generator), torch.rand(2, 3, 5, 7, generator=generator)
    regions = region_decomposition(predicted, truth, threshold=0.6)
    parts = (regions.true_positive, regions.false_positive, regions.false_negative, regions.true_negative)
    assert (torch.stack(parts).sum(0) == 1).all()
    assert all(part.any() for part in parts)


def test_maximum_of_stored_heatmaps_has_no_gradient() -> None:
    assert max_over_classes(torch.tensor([[[[7]], [[200]]]], dtype=torch.uint8)).tolist() == [[[200]]]
    assert not max_over_classes(torch.rand(1, 2, 3, 3, requires_grad=True)).requires_grad


def test_every_kind_of_false_positive_by_hand() -> None:
    #                        both   teacher student  there   none
    teacher = torch.tensor([[[0.9, 0.9, 0.2, 0.9, 0.0]]])
    student = torch.tensor([[[0.9, 0.0, 0.9, 0.9, 0.0]]])
    truth = torch.tensor([[[0.1, 0.1, 0.1, 1.0, 0.1]]])
    expected = {
        "none": [0, 0, 0, 0, 0],
        "teacher": [1, 1, 0, 0, 0],
        "student": [1, 0, 1, 0, 0],
        "teacher_selected_student": [0, 0, 1, 0, 0],
        "teacher+teacher_selected_student": [1, 1, 1, 0, 0],
    }
    for kind, cells in expected.items():
        found = false_positives(kind, teacher, student, truth, threshold=0.5, gt_threshold=0.3)
        assert found.long().tolist() == [[cells]], kind


def test_without_a_threshold_for_the_truth_the_other_one_counts() -> None:
    teacher, truth = torch.tensor([[[0.9, 0.9]]]), torch.tensor([[[0.4, 0.6]]])
    assert false_positives("teacher", teacher, teacher, truth, 0.5).tolist() == [[[True, False]]]


def test_average_scale() -> None:
    region = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    expected = torch.tensor([[[1 / 3, 0], [1 / 3, 1 / 3]], [[0, 0], [0, 0]]])
    assert torch.allclose(region_scale("average", region), expected)


def test_region_scale_is_the_share_of_the_connected_component() -> None:
    region = torch.zeros(2, 6, 7, dtype=torch.bool)
    region[0, :3, :3] = True  # 3 x 3: 1/9 each, where the public region growing gives 1/19
    region[0, 3, 3] = True  # touches a corner only
    region[0, 5, 2:7] = True
    region[1, 0, 0] = True  # under a cell of sample 0, yet alone in its own sample
    expected = torch.zeros(2, 6, 7)
    expected[0, :3, :3], expected[0, 3, 3], expected[0, 5, 2:7], expected[1, 0, 0] = 1 / 9, 1.0, 1 / 5, 1.0
    assert torch.allclose(region_scale("region", region), expected)


def test_region_scale_of_nothing() -> None:
    assert not region_scale("region", torch.zeros(2, 4, 5, dtype=torch.bool)).any()


def test_fit_takes_the_largest_and_repeats() -> None:
    fine = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])
    assert resize_map(fine, (1, 2)).tolist() == [[[6.0, 8.0]]]
    assert resize_map(torch.tensor([[[1.0, 2.0]]]), (2, 4)).tolist() == [[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]
    assert resize_map(fine, (2, 4)) is fine
    assert resize_map(torch.rand(2, 3, 8, 4), (2, 2)).shape == (2, 3, 2, 2)


def test_fit_refuses_what_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"do not merge or split .*got 6 x 6 cells; expected 4 x 4 cells"):
        resize_map(torch.zeros(1, 6, 6), (4, 4))


def test_mean_within_by_hand() -> None:
    error = torch.tensor([[[2.0, 4.0]], [[6.0, 8.0]], [[1.0, 1.0]]])
    region = torch.tensor([[[True, True]], [[False, True]], [[False, False]]])
    # Means 3 and 8 over the two samples that have cells; two channels halve them.
    assert mean_within(error, region).item() == 5.5
    assert mean_within(error, region, channels=2).item() == 2.75
    assert mean_within(error, torch.zeros_like(region)).item() == 0.0
