import numpy as np
import pytest

from cache.errors import DataError
from cache.nuscenes.plausibility import require_boxes, require_older, require_poses

NO_TURN = [1.0, 0.0, 0.0, 0.0]


def where(row: int) -> str:
    return f"row {row}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_positions_that_are_no_places(bad):
    translations = np.array([[1.0, 2, 3], [600, bad, 0]])
    with pytest.raises(DataError, match=r"a position is not a place \(row 1\); got \[600.0") as caught:
        require_poses(translations, np.array([NO_TURN] * 2), where)
    assert "Correct this row of the table" in str(caught.value)


@pytest.mark.parametrize("bad", [[0.0] * 4, [200.0, 0, 0, 0], [1e-9, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 0]])
def test_rotations_that_are_none(bad):
    with pytest.raises(DataError, match=r"a rotation is not a quaternion \(row 0\)"):
        require_poses(np.zeros((1, 3)), np.array([bad]), where)


def test_sound_poses():
    half = np.sqrt(0.5)
    require_poses(np.array([[411.3, 1180.9, 0.0], [-1e6, 5e6, 1e4]]), np.array([NO_TURN, [half, 0, 0, -half]]), where)
    require_poses(np.zeros((0, 3)), np.zeros((0, 4)), where)


@pytest.mark.parametrize("size", [[0.0, 4, 2], [2, -4, 2], [2, 4, np.nan], [2, 4, np.inf], [1e6, 1, 1]])
def test_boxes_without_a_size(size):
    box = np.zeros((1, 3)), np.array([size], float), np.array([NO_TURN]), np.zeros((1, 3))
    with pytest.raises(DataError, match=r"a box has no size \(row 0\)"):
        require_boxes(*box, where)


def test_a_velocity_may_be_unknown_and_not_infinite():
    box = np.zeros((1, 3)), np.ones((1, 3)), np.array([NO_TURN])
    require_boxes(*box, np.full((1, 3), np.nan), where)
    with pytest.raises(DataError, match="velocity is infinite"):
        require_boxes(*box, np.full((1, 3), np.inf), where)


@pytest.mark.parametrize("times", [[500, 500], [500, 400, 450], [500, 500, 500]])
def test_a_chain_that_does_not_lead_to_the_past(times):
    with pytest.raises(DataError, match="`prev` does not lead to an older one"):
        require_older(np.array(times), where)
    require_older(np.array([500, 400, 300]), where)
    require_older(np.array([500]), where)
