import numpy as np
import pytest
import torch

from student.models.nms import circle_nms, footprint_corners, rotated_nms


def test_circles_keep_the_first_of_those_too_near() -> None:
    centers = np.array([[0.0, 0], [0, 1.9], [0, 3.8], [5, 0], [5, 2.0]])
    assert circle_nms(centers, 2.0, limit=9).tolist() == [0, 2, 3]


def test_a_suppressed_circle_suppresses_nothing() -> None:
    assert circle_nms(np.array([[0.0, 0], [0, 1], [0, 2]]), 1.5, limit=9).tolist() == [0, 2]


def test_at_most_so_many_are_kept() -> None:
    centers = np.arange(10.0)[:, None] * [10, 0]
    assert circle_nms(centers, 1.0, limit=3).tolist() == [0, 1, 2]
    assert rotated_nms(np.c_[centers, np.ones((10, 3))], 0.5, limit=3).tolist() == [0, 1, 2]


def test_corners_of_a_turned_box() -> None:
    corners = footprint_corners(np.array([[10.0, 20, 4, 2, np.pi / 2]]))
    np.testing.assert_allclose(corners[0], [[9, 22], [9, 18], [11, 18], [11, 22]], atol=1e-9)


@pytest.mark.parametrize(
    ("other", "overlap"),
    [
        ([1.0, 0, 2, 2, 0], 2 / 6),  # half of each
        ([0.0, 0, 2, 1, 0], 2 / 4),  # a half within
        ([0.0, 0, 2, 2, np.pi / 4], (np.sqrt(2) - 1) / (2 - np.sqrt(2))),  # an octagon, 8 (sqrt 2 - 1), of 8 in all
        ([1.9, 1.9, 2, 2, 0], 0.01 / 7.99),
        ([2.0, 0, 2, 2, 0], 0.0),  # touching
        ([1.5, 1.5, 2, 2, np.pi / 4], 0.0857864 / 7.9142136),  # a triangle, (sqrt 2 - 1)^2 / 2
        ([1.9, 1.9, 2, 2, np.pi / 4], 0.0),  # only their bounding boxes overlap
    ],
)
def test_overlap_by_hand(other: list[float], overlap: float) -> None:
    pair = np.array([[0.0, 0, 2, 2, 0], other])
    assert rotated_nms(pair, overlap * 1.02 + 1e-9, limit=9).tolist() == [0, 1]
    if overlap:
        assert rotated_nms(pair, overlap * 0.98, limit=9).tolist() == [0]


def test_nothing_gives_nothing() -> None:
    assert rotated_nms(np.zeros((0, 5)), 0.2, limit=9).tolist() == []
    assert circle_nms(np.zeros((0, 2)), 0.2, limit=9).tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_mmdet3d(seed: int) -> None:
    layers = pytest.importorskip("mmdet3d.models.layers")
    rng = np.random.default_rng(seed)
    boxes = np.c_[rng.uniform(-15, 15, (200, 2)), rng.uniform(0.5, 6, (200, 2)), rng.uniform(-7, 7, 200)]
    scores = np.linspace(1, 0.1, 200)
    circles = layers.circle_nms(np.c_[boxes[:, :2], scores], 4.0, post_max_size=30)
    assert circle_nms(boxes[:, :2], 2.0, limit=30).tolist() == list(circles)
    x, y, dx, dy, yaw = torch.from_numpy(boxes).float().T
    flat = torch.stack([x - dx / 2, y - dy / 2, x + dx / 2, y + dy / 2, yaw], dim=1)
    rotated = layers.nms_bev(flat, torch.from_numpy(scores).float(), 0.2, pre_max_size=150, post_max_size=83)
    assert rotated_nms(boxes[:150], 0.2, limit=83).tolist() == rotated.tolist()
