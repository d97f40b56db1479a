import numpy as np

from student.config.student import ImageConfig
from student.data.image_augment import image_matrix, reduced_pixels, warp_image

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


def test_evaluation_can_zoom_as_the_public_code_does() -> None:
    """1600 x 900 at 0.44 + 0.04 is 768 x 432: 32 columns go on each side, and 176 rows at the top."""
    matrix = image_matrix(ImageConfig(resize_test=0.04), (900, 1600), rng=None)
    corner = matrix @ np.array([-0.5, -0.5, 1.0])  # the corner of the first pixel
    np.testing.assert_allclose(corner[:2], [-32 - 0.5, -176 - 0.5], atol=1e-9)
    np.testing.assert_allclose(matrix[:2, :2], np.eye(2) * 0.48, atol=1e-12)
