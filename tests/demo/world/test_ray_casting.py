"""Rays against boxes, by hand."""

import numpy as np
import pytest

from demo.world.ray_casting import Solids, intersect_boxes, rotate_z, surface_at

LOW, HIGH = np.asarray([[4.0, -1.0, 0.0], [6.0, -1.0, 0.0]]), np.asarray([[5.0, 1.0, 2.0], [7.0, 1.0, 3.0]])


def directions(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64).T


def test_the_first_box_hides_the_second() -> None:
    rays = directions((1, 0, 0), (1, 0, 0.4), (1, 1, 0), (-1, 0, 0))
    depth, index = intersect_boxes(np.asarray([[0.0], [0.0], [1.0]]), rays, LOW, HIGH)
    # Straight on: the front of the first. Upwards: over the first (1 + 0.4 * 4 > 2), onto the second at z = 3.4 > 3.
    assert depth.tolist() == [4.0, np.inf, np.inf, np.inf]
    assert index[0] == 0


def test_over_the_first_onto_the_second() -> None:
    depth, index = intersect_boxes(np.asarray([[0.0], [0.0], [1.0]]), directions((1, 0, 0.3)), LOW, HIGH)
    assert (depth[0], index[0]) == (6.0, 1)


def test_a_box_behind_the_origin_is_not_hit() -> None:
    depth, _ = intersect_boxes(np.asarray([[10.0], [0.0], [1.0]]), directions((1, 0, 0), (-1, 0, 0)), LOW, HIGH)
    assert depth.tolist() == [np.inf, 3.0]


def test_one_direction_from_many_origins() -> None:
    origins = np.asarray([[4.5, 6.5, 9.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    depth, _ = intersect_boxes(origins, directions((0, 0, 1)), LOW, HIGH)
    assert depth.tolist() == [1.0, 1.0, np.inf]


def test_turning_by_a_quarter() -> None:
    assert rotate_z(np.asarray([[1.0], [2.0], [3.0]]), np.pi / 2).ravel() == pytest.approx([-2.0, 1.0, 3.0])


def test_faces_and_normals_of_a_turned_box() -> None:
    # One box of 2 x 2 x 1 m at (10, 5), turned to the left by a quarter: its front looks along +y.
    solids = Solids(
        poses=np.asarray([[10.0, 5.0, np.pi / 2]]),
        low=np.asarray([[-1.0, -1.0, 0.0]]),
        high=np.asarray([[1.0, 1.0, 1.0]]),
        owner=np.asarray([0]),
    )
    points = np.asarray([[10.3, 6.0, 0.25], [11.0, 5.2, 0.5], [10.0, 5.0, 1.0]]).T
    faces = surface_at(points, np.zeros(3, dtype=int), solids)
    assert faces.axis.tolist() == [0, 1, 2]
    np.testing.assert_allclose(faces.normal.T, [[0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    assert faces.up == pytest.approx([0.25, 0.5, 1.0])
    # Along the front lies the box's own y, which points to the map's -x; along its side lies its own x.
    assert faces.along[:2] == pytest.approx([-0.3, 0.2])
