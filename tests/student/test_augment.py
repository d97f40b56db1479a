import numpy as np
import pytest

from student.augment import bev_matrix, image_matrix, move_boxes, reduced_pixels, warp_image
from student.config import BevAugmentConfig, ImageConfig

STILL = ImageConfig(size=(256, 704), resize=(0, 0), rotation_deg=(0, 0), flip=False)


def apply(matrix: np.ndarray, u: float, v: float) -> np.ndarray:
    return (matrix @ (u, v, 1.0))[:2]


def test_evaluation_keeps_the_bottom_of_a_nuscenes_image() -> None:
    # 1600 x 900 at 0.44 is 704 x 396; the lowest 256 rows stay, so 140 rows are cut at the top.
    matrix = image_matrix(ImageConfig(), (900, 1600), rng=None)
    corner = apply(matrix, -0.5, -0.5)  # the outer corner of the first pixel
    np.testing.assert_allclose(corner, (-0.5, -140.5), atol=1e-9)
    np.testing.assert_allclose(apply(matrix, 1599.5, 899.5), (703.5, 255.5), atol=1e-9)


def test_without_ranges_a_draw_equals_evaluation() -> None:
    drawn = image_matrix(STILL, (900, 1600), np.random.default_rng(0))
    np.testing.assert_allclose(drawn, image_matrix(STILL, (900, 1600), None), atol=1e-12)


def test_flip_mirrors_pixel_centres() -> None:
    config = STILL.model_copy(update={"flip": True})
    seeds = range(20)
    plain = image_matrix(STILL, (900, 1600), None)
    drawn = [image_matrix(config, (900, 1600), np.random.default_rng(seed)) for seed in seeds]
    flipped = [m for m in drawn if m[0, 0] < 0]
    assert 0 < len(flipped) < len(drawn)
    u, v = apply(plain, 300, 600)
    np.testing.assert_allclose(apply(flipped[0], 300, 600), (703 - u, v), atol=1e-9)


def test_rotation_turns_about_the_centre() -> None:
    config = STILL.model_copy(update={"rotation_deg": (90.0, 90.0)})
    matrix = image_matrix(config, (256, 704), np.random.default_rng(0))
    np.testing.assert_allclose(apply(matrix, 351.5, 127.5), (351.5, 127.5), atol=1e-9)
    np.testing.assert_allclose(apply(matrix, 352.5, 127.5), (351.5, 128.5), atol=1e-9)


def test_a_dot_lands_where_the_matrix_says() -> None:
    image = np.zeros((900, 1600, 3), np.uint8)
    image[600:604, 800:804] = 255
    matrix = image_matrix(ImageConfig(), (900, 1600), np.random.default_rng(3))
    rows, columns = np.nonzero(warp_image(image, matrix, (256, 704))[..., 0] > 60)
    np.testing.assert_allclose(apply(matrix, 801.5, 601.5), (columns.mean(), rows.mean()), atol=0.5)


def test_reduced_pixels_keep_the_corner() -> None:
    matrix = reduced_pixels(2.0, 2.0)
    np.testing.assert_allclose(apply(matrix, 0, 0), (0.5, 0.5))  # the first reduced pixel covers pixels 0 and 1
    np.testing.assert_allclose(apply(matrix, 1, 3), (2.5, 6.5))


def test_bev_matrix_is_the_identity_by_default() -> None:
    np.testing.assert_array_equal(bev_matrix(BevAugmentConfig(), np.random.default_rng(0)), np.eye(4))
    wild = BevAugmentConfig(rotation_deg=(-22.5, 22.5), scale=(0.95, 1.05), flip_x=True, flip_y=True)
    np.testing.assert_array_equal(bev_matrix(wild, None), np.eye(4))


def test_bev_rotation_is_counter_clockwise_and_scale_is_uniform() -> None:
    config = BevAugmentConfig(rotation_deg=(90, 90), scale=(2, 2))
    matrix = bev_matrix(config, np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ (1, 0, 1, 1), (0, 2, 2, 1), atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_move_with_their_corners(seed: int) -> None:
    config = BevAugmentConfig(rotation_deg=(-22.5, 22.5), scale=(0.95, 1.05), flip_x=True, flip_y=True)
    matrix = bev_matrix(config, np.random.default_rng(seed))
    box = np.array([[10.0, -4.0, -1.0, 4.0, 2.0, 1.5, 0.3, 3.0, 1.0]], np.float32)
    moved = move_boxes(box, matrix)
    corners = lambda b: {tuple(np.round(c, 3)) for c in footprint(b[0])}  # noqa: E731
    expected = footprint(box[0]) @ matrix[:2, :2].T
    assert corners(moved) == {tuple(np.round(c, 3)) for c in expected}
    nose = box[0, :2] + 2 * np.array([np.cos(0.3), np.sin(0.3)])
    moved_nose = moved[0, :2] + moved[0, 3] / 2 * np.array([np.cos(moved[0, 6]), np.sin(moved[0, 6])])
    np.testing.assert_allclose(moved_nose, matrix[:2, :2] @ nose, atol=1e-4)
    np.testing.assert_allclose(moved[0, 7:9], matrix[:2, :2] @ box[0, 7:9], atol=1e-5)


def footprint(box: np.ndarray) -> np.ndarray:
    x, y, _, length, width, _, yaw = box[:7]
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    return np.array([[l, w] for l in (-1, 1) for w in (-1, 1)]) * (length / 2, width / 2) @ turn.T + (x, y)  # noqa: E741
