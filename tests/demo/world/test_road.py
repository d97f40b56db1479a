"""The road: an arc and its coordinates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.world.road import ASPHALT, MARKING, PAVEMENT, VERGE, Road, ground_cover

QUARTER = Road(radius_m=100.0, x_m=10.0, y_m=20.0, yaw_rad=0.0)


def test_a_quarter_of_a_left_bend() -> None:
    x, y, yaw = QUARTER.to_map(np.asarray([50 * np.pi]), np.asarray([0.0]))
    assert (x[0], y[0], yaw[0]) == pytest.approx((110.0, 120.0, np.pi / 2))


def test_left_of_the_lane_is_towards_the_centre_of_a_left_bend() -> None:
    x, y, _ = QUARTER.to_map(np.asarray([50 * np.pi]), np.asarray([3.0]))
    assert (x[0], y[0]) == pytest.approx((107.0, 120.0))


@given(
    sign=st.sampled_from((-1, 1)),
    radius=st.floats(80, 500),
    yaw=st.floats(-3.1, 3.1),
    s=st.floats(-60, 60),
    d=st.floats(-40, 40),
)
def test_the_way_to_the_map_and_back(sign: int, radius: float, yaw: float, s: float, d: float) -> None:
    road = Road(radius_m=sign * radius, x_m=300.0, y_m=-200.0, yaw_rad=yaw)
    x, y, _ = road.to_map(np.asarray([s]), np.asarray([d]))
    assert np.ravel(road.from_map(x, y)) == pytest.approx([s, d], abs=1e-8)


def test_a_vehicle_sees_the_road_from_where_it_is() -> None:
    s, d = QUARTER.from_vehicle(QUARTER.pose(30.0), np.asarray([0.0]), np.asarray([2.5]))
    assert (s[0], d[0]) == pytest.approx((30.0, 2.5))


def test_what_covers_the_ground() -> None:
    d = np.asarray([0.0, 1.8, 1.8, 14.0, 30.0])
    s = np.asarray([0.0, 1.0, 4.0, 0.0, 0.0])
    assert ground_cover(s, d).tolist() == [ASPHALT, MARKING, ASPHALT, PAVEMENT, VERGE]
