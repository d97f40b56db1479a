"""What the cameras show is where the geometry says it is."""

import cv2
import numpy as np
import pytest

from demo.world.camera import CAMERAS, render
from demo.world.ray_casting import GROUND, SKY
from demo.world.scene import Scene
from tests.factories.scenes import cube, stage

SIZE = (180, 320)
FRONT = CAMERAS[0]


def pixels_of(corners: np.ndarray) -> np.ndarray:
    """(column, row) of ego-frame points in the front camera, by OpenCV."""
    rotation = FRONT.rotation.T
    turn, _ = cv2.Rodrigues(rotation)
    pixels, _ = cv2.projectPoints(corners, turn, -rotation @ np.asarray(FRONT.position_m), FRONT.intrinsics(SIZE), None)
    return pixels[:, 0]


@pytest.mark.parametrize("camera", CAMERAS, ids=[camera.name for camera in CAMERAS])
def test_camera_axes_are_right_handed_and_level(camera) -> None:
    assert camera.rotation @ camera.rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
    assert camera.rotation @ [0, -1, 0] == pytest.approx([0, 0, 1])
    yaw = np.radians(camera.yaw_deg)
    assert camera.rotation @ [0, 0, 1] == pytest.approx([np.cos(yaw), np.sin(yaw), 0])


def test_the_front_of_a_box_covers_its_projection() -> None:
    picture = render(stage(cube(12.0)), 0.0, FRONT, SIZE)
    covered = picture.hits.part == 0
    front = np.asarray([[10.0, y, z] for y in (-1.0, 1.0) for z in (0.0, 1.5)])
    columns, rows = pixels_of(front).T
    found_rows, found_columns = np.nonzero(covered)
    # The camera is higher than the box: its roof is visible too, above its front.
    assert found_columns.min() == pytest.approx(columns.min(), abs=1)
    assert found_columns.max() + 1 == pytest.approx(columns.max(), abs=1)
    assert found_rows.max() + 1 == pytest.approx(rows.max(), abs=1)
    centre = covered.shape[0] * 6 // 10, int(0.51 * SIZE[1])
    assert picture.hits.depth[centre] == pytest.approx(10.0 - FRONT.position_m[0], abs=1e-4)


def test_colour_of_a_face_and_of_the_sky() -> None:
    picture = render(stage(cube(12.0, rgb=(200, 40, 40))), 0.0, FRONT, SIZE)
    front = picture.image[int(SIZE[0] * 0.6), int(0.51 * SIZE[1])].astype(float)
    # The sun is in the zenith: a wall gets the ambient half of the light, and haze of 8.3 m (1 - exp(-8.3 / 250)).
    haze = 1 - np.exp(-8.3 / 250)
    assert front == pytest.approx(0.5 * np.asarray([200, 40, 40]) * (1 - haze) + 200 * haze, abs=1)
    assert picture.image[0, 0, 2] > picture.image[0, 0, 0]


def test_sky_is_above_and_ground_below() -> None:
    hits = render(stage(), 0.0, FRONT, SIZE).hits
    assert (hits.part[: int(0.54 * SIZE[0])] == SKY).all()
    assert (hits.part[int(0.54 * SIZE[0]) + 1 :] == GROUND).all()


def test_the_ground_is_as_far_as_the_camera_is_high() -> None:
    hits = render(stage(), 0.0, FRONT, SIZE).hits
    intrinsics = FRONT.intrinsics(SIZE)
    expected = FRONT.position_m[2] * intrinsics[1, 1] / (SIZE[0] - 0.5 - intrinsics[1, 2])
    assert hits.depth[-1] == pytest.approx(expected, rel=1e-5)


def test_a_box_that_is_hidden_loses_its_pixels() -> None:
    small, wall = cube(20.0, size_m=(1.0, 1.0, 1.0)), cube(8.0, size_m=(1.0, 6.0, 3.0))
    open_view, hidden = (render(stage(*actors), 0.0, FRONT, SIZE).hits for actors in ((small,), (small, wall)))
    assert open_view.visible[0] == open_view.unoccluded[0] > 20
    assert (hidden.visible[0], hidden.unoccluded[0]) == (0, open_view.unoccluded[0])
    assert hidden.visible[1] == hidden.unoccluded[1]


def test_a_box_that_is_half_hidden_keeps_half_of_its_pixels() -> None:
    wide = cube(20.0, size_m=(1.0, 4.0, 1.0))
    # Seen from the camera, the wall ends at the middle of the box behind it.
    wall = cube(8.0, left_m=-2.0, size_m=(0.2, 4.0, 3.0))
    hits = render(stage(wide, wall), 0.0, FRONT, SIZE).hits
    assert hits.visible[0] / hits.unoccluded[0] == pytest.approx(0.5, abs=0.1)


def test_a_box_across_the_image_plane_is_drawn() -> None:
    beside = cube(2.0, left_m=2.5, size_m=(12.0, 2.0, 3.0))
    hits = render(stage(beside), 0.0, FRONT, SIZE).hits
    assert hits.visible[0] > 0
    assert hits.part[int(0.4 * SIZE[0]), 0] == 0


def test_a_shadow_is_darker() -> None:
    floating_roof = cube(10.0, size_m=(3.0, 3.0, 1.0))
    scene, bare = stage(floating_roof), stage()
    low_sun = scene.light.__class__(**(vars(scene.light) | {"sun": (0.6, 0.0, 0.8)}))
    lit, shaded = (
        render(Scene(**(vars(s) | {"light": low_sun})), 0.0, FRONT, SIZE).image.astype(int) for s in (bare, scene)
    )
    # The sun stands ahead, so the shadow of 0.75 m falls towards the camera; (7.9, 0, 0) lies in it.
    column, row = np.floor(pixels_of(np.asarray([[8.2, 0.0, 0.0]]))[0]).astype(int)
    assert (shaded[row, column] < lit[row, column]).all()
    column, row = np.floor(pixels_of(np.asarray([[7.0, 0.0, 0.0]]))[0]).astype(int)
    assert (shaded[row, column] == lit[row, column]).all()
