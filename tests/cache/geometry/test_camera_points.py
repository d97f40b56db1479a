import numpy as np
import pytest

from cache.errors import DataError
from cache.geometry.camera_points import DepthSpec, decoded_points, depth_codes

SPEC = DepthSpec(cameras=("left", "right"), room=4, pixel_step=1 / 32)
NOTHING = np.zeros((0, 3))


@pytest.mark.parametrize(
    ("side", "points", "step", "room"),
    [(1600, 4000, 1 / 32, 16384), (256, 9000, 1 / 256, 32768), (2049, 0, 1 / 16, 16384)],
)
def test_the_finest_step_that_fits(side: int, points: int, step: float, room: int) -> None:
    spec = DepthSpec.fitting(("left",), side, points)
    assert (spec.pixel_step, spec.room, spec.depth_step_m) == (step, room, 0.005)


def test_codes_by_hand() -> None:
    """The outer corner of the first pixel has code 0, its centre 16; what comes nearer is put first."""
    points = np.array([[0.0, 899.49, 10.0], [-0.5, 0.0, 2.5]])
    codes = depth_codes([points, NOTHING], SPEC)
    assert codes.dtype == np.uint16
    assert codes[0].tolist() == [[0, 16, 0, 0], [16, 28799, 0, 0], [500, 2000, 0, 0]]
    assert not codes[1].any()
    first, second = decoded_points(codes, SPEC)
    np.testing.assert_allclose(first, [[0.5 / 32 - 0.5, 0.5 / 32, 2.5], [0.5 / 32, 899.484375, 10.0]], atol=1e-9)
    assert second.shape == (0, 3)


def test_codes_keep_points_to_their_steps() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-0.5, -0.5, 0.1), (1599.5, 899.5, 120.0), (5000, 3))
    spec = DepthSpec.fitting(("left",), 1600, 5000)
    (found,) = decoded_points(depth_codes([points], spec), spec)
    ordered = points[np.argsort(np.round(points[:, 2] / 0.005), kind="stable")]
    error = np.abs(found - ordered)
    assert (error[:, :2] <= 1 / 64 + 1e-9).all()
    assert (error[:, 2] <= 0.0025 + 1e-9).all()
    assert (np.floor(found[:, :2] + 0.5) == np.floor(ordered[:, :2] + 0.5)).all()  # never another pixel


def test_depths_without_a_code_are_left_out() -> None:
    points = np.array([[1, 1, 0.002], [2, 2, 327.67], [3, 3, 327.68], [4, 4, 0.004]])
    codes = depth_codes([points, NOTHING], SPEC)
    assert codes[0, 2].tolist() == [1, 65534, 0, 0]


def test_near_points_are_left_out_on_demand() -> None:
    codes = depth_codes([np.array([[1, 1, 0.9], [2, 2, 1.1]]), NOTHING], SPEC)
    assert decoded_points(codes, SPEC, nearest_m=1.0)[0][:, 2].tolist() == [1.1]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((5, 3)), r"\(right\); got 5 points, the last of them at pixel 1; expected at most 4 points"),
        (np.array([[3000.0, 1, 5]]), "got 1 points, the last of them at pixel 3000; expected .* of 2048 pixels a side"),
    ],
)
def test_what_does_not_fit_is_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        depth_codes([NOTHING, points], SPEC)
