import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.geometry.views import transform_boxes
from student.distill.predictions import BatchPredictions, StudentDepth
from student.distill.terms.tigbev_depth import (
    TigbevDepthLoss,
    TigbevDepthTerm,
    expected_depth,
    first_box_around,
    inner_depth,
)
from tests.factories.distill import random_boxes


def test_the_expected_depth_is_the_mean_of_the_bins_middles() -> None:
    logits = torch.tensor([0.0, 0.0, math.log(2.0)]).view(1, 1, 3, 1, 1)
    maps = torch.zeros(1, 1, 1, 1)
    depth = StudentDepth(logits=logits, depth_m=maps, points_m=maps[..., None].expand(1, 1, 1, 1, 3), bins_m=(1, 7, 2))
    assert expected_depth(depth).item() == pytest.approx((2 + 4 + 2 * 6) / 4)


def test_the_first_box_around_a_point() -> None:
    boxes = torch.tensor(
        [[[0.0, 0, 0, 4, 2, 1.5, math.pi / 2], [0.0, 0, 0, 8, 8, 3, 0], [0.0, 0, 0, 0, 0, 0, 0]]], dtype=torch.float64
    )
    # In the first (turned by 90 degrees), beside it, above it, below both, beyond both.
    points = torch.tensor([[[0.5, 1.9, 0.5], [1.5, 0, 0.5], [0, 0, 2], [0, 0, -0.1], [5, 0, 1]]], dtype=torch.float64)
    assert first_box_around(points, boxes).tolist() == [[0, 1, 1, -1, -1]]
    assert first_box_around(points, boxes[:, :0]).tolist() == [[-1] * 5]


def test_three_patches_of_a_box_by_hand() -> None:
    """Errors of 1, -0.5 and 3 m: the second patch is the reference, (0, 0) apart from itself."""
    estimate, truth = torch.tensor([[[[11.0, 11.5, 16.0, 5.0]]]]), torch.tensor([[[[10.0, 12.0, 13.0, 9.0]]]])
    relative, expected = (-0.5, 0.0, 4.5), (-2.0, 0.0, 1.0)
    errors = [(a - b) ** 2 for a, b in zip(relative, expected, strict=True)]
    found = inner_depth(estimate, truth, torch.tensor([[[[0, 0, 0, -1]]]]), 1)
    assert found.item() == pytest.approx(sum(errors) / 3) == pytest.approx((2.25 + 0 + 12.25) / 3)


def by_loops(estimate: Tensor, truth: Tensor, of_box: Tensor) -> float:
    total, count = 0.0, 0
    for e, t, box in zip(*(part.flatten(0, 1).flatten(1) for part in (estimate, truth, of_box)), strict=True):
        for index in sorted({b for b in box.tolist() if b >= 0}):
            patches = [p for p in range(len(box)) if box[p] == index and t[p] > 0]
            reference = min(patches, key=lambda p: abs((e[p] - t[p]).item()))
            for p in patches:
                total += ((e[p] - e[reference]) - (t[p] - t[reference])).item() ** 2
                count += 1
    return total / count


def test_relative_depths_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, truth = (1 + 20 * torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    of_box = torch.randint(-1, 4, (2, 3, 4, 5), generator=generator)
    truth[:, :, 0] = 0
    of_box[:, :, 0] = -1
    found = inner_depth(estimate, truth, of_box, 4)
    assert found.item() == pytest.approx(by_loops(estimate, truth, of_box), rel=1e-12)


def test_no_patch_in_a_box_gives_zero() -> None:
    estimate = torch.rand(1, 2, 3, 3, requires_grad=True)
    for boxes in (0, 2):
        nowhere = torch.full((1, 2, 3, 3), -1)
        value = inner_depth(estimate, torch.ones(1, 2, 3, 3), nowhere, boxes)
        assert value.item() == 0


def test_gradients_are_those_of_finite_differences_with_the_references_held() -> None:
    generator = torch.Generator().manual_seed(1)
    estimate, truth = (1 + 20 * torch.rand(1, 1, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    of_box = torch.randint(0, 2, (1, 1, 3, 4), generator=generator)
    held = estimate.clone()
    estimate.requires_grad_()
    inner_depth(estimate, truth, of_box, 2).backward()
    numeric = torch.zeros(12, dtype=torch.float64)
    for box in range(2):
        patches = [p for p in range(12) if of_box.flatten()[p] == box]
        e, t = held.flatten(), truth.flatten()
        reference = min(patches, key=lambda p: abs((e[p] - t[p]).item()))
        for p in patches:
            numeric[p] = 2 * ((e[p] - e[reference]) - (t[p] - t[reference])) / 12
    assert estimate.grad is not None
    torch.testing.assert_close(estimate.grad.flatten(), numeric)


@pytest.mark.parametrize(
    ("degrees", "scale", "flips"), [(0, 1.0, (-1, 1)), (0, 1.0, (1, -1)), (20, 1.0, (1, 1)), (-15, 1.05, (-1, -1))]
)
def test_points_and_boxes_that_move_together_keep_their_loss(
    degrees: float, scale: float, flips: tuple[int, int]
) -> None:
    """BEV augmentation moves boxes and points, not the depth in a camera; against loops in the unmoved frame."""
    grid = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8))
    boxes, generator = random_boxes(60, grid, seed=0), torch.Generator().manual_seed(0)
    points = (torch.rand(1, 2, 6, 8, 3, generator=generator) - torch.tensor([0.5, 0.5, 0.0])) * torch.tensor(
        [26, 26, 1]
    )
    logits, depth_m = (
        torch.randn(1, 2, 10, 6, 8, generator=generator),
        1 + 19 * torch.rand(1, 2, 6, 8, generator=generator),
    )
    angle, matrix = math.radians(degrees), np.eye(4)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[:2, :2], matrix[2, 2] = scale * turn @ np.diag(flips), scale
    moved_boxes = torch.from_numpy(transform_boxes(boxes.numpy(), matrix))
    moved = (points.double() @ torch.from_numpy(matrix[:3, :3]).mT).float()
    depth = StudentDepth(logits=logits, depth_m=depth_m, points_m=moved, bins_m=(1.0, 21.0, 2.0))
    predictions = BatchPredictions(
        boxes=moved_boxes[None].double(),
        channels=torch.zeros(1, 60, dtype=torch.long),
        task_slices=(slice(0, 1),),
        grid=grid,
        student_logits=torch.zeros(1, 1, *grid.shape),
        teachers=(),
        teacher_order=(),
        epoch=0,
        depth=depth,
    )
    of_box = first_box_around(points.flatten(1, 3).double(), boxes[None].double()).view(depth_m.shape)
    assert (of_box >= 0).sum() > 20
    expected = by_loops((logits.softmax(2) * torch.arange(2, 22, 2)[:, None, None]).sum(2), depth_m, of_box)
    found = TigbevDepthLoss(TigbevDepthTerm(kind="tigbev_depth", weight=2.0))(predictions)
    assert found["inner"].item() == pytest.approx(2 * expected, rel=1e-4)
