"""Views: matrices by hand-computed numbers, what moves with them, and which view is nearest."""

import hashlib

import numpy as np
import pytest

from cache.errors import ConfigError
from cache.geometry.views import (
    PUBLIC_AUGMENT,
    BevAugmentConfig,
    DrawnViews,
    ViewsConfig,
    bev_matrix,
    nearest_view,
    require_views,
    residual_displacement_m,
    transform_boxes,
    transform_points,
    view_matrices,
)


def drawn(seed: int = 0, config: BevAugmentConfig = PUBLIC_AUGMENT) -> np.ndarray:
    return bev_matrix(config, np.random.default_rng(seed))


def turn(degrees: float) -> np.ndarray:
    return drawn(0, BevAugmentConfig(rotation_deg=(degrees, degrees)))


def mirror(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0, 1.0])


# Matrices


def test_nothing_is_drawn_by_default() -> None:
    np.testing.assert_array_equal(drawn(0, BevAugmentConfig()), np.eye(4))
    np.testing.assert_array_equal(bev_matrix(PUBLIC_AUGMENT, None), np.eye(4))


def test_rotation_is_counter_clockwise_and_scale_is_uniform() -> None:
    matrix = drawn(0, BevAugmentConfig(rotation_deg=(90, 90), scale=(2, 2)))
    np.testing.assert_allclose(matrix @ (1, 0, 1, 1), (0, 2, 2, 1), atol=1e-12)


def test_the_order_is_rotate_scale_translate_flip() -> None:
    """With a seed that flips both axes, by hand: 90 degrees, twice the size, the offset, both signs."""
    config = BevAugmentConfig(
        rotation_deg=(90, 90), scale=(2, 2), translation_std_m=(3, 0, 1), flip_x=True, flip_y=True
    )
    both = [m for m in (drawn(seed, config) for seed in range(40)) if m[0, 1] > 0 > m[1, 0]]
    assert both
    for matrix in both:
        offset_x, offset_z = -matrix[0, 3], matrix[2, 3]  # the flip of x has negated the offset
        assert abs(offset_x) > 1e-3
        assert matrix[1, 3] == 0  # no deviation along y
        point = matrix @ (5, 1, 0.5, 1)  # turned (-1, 5, 0.5), scaled (-2, 10, 1), moved, mirrored
        np.testing.assert_allclose(point, (2 - offset_x, -10, 1 + offset_z, 1), atol=1e-9)


def test_the_public_recipe_draws_its_whole_range_and_all_flips() -> None:
    matrices = [drawn(seed) for seed in range(300)]
    scales = [np.cbrt(abs(np.linalg.det(m[:3, :3]))) for m in matrices]
    assert 0.95 <= min(scales) < 0.953
    assert 1.047 < max(scales) <= 1.05
    signs = [(np.sign(m[0, 0]), np.sign(m[1, 1])) for m in matrices]
    assert {s: 0.15 < signs.count(s) / 300 < 0.35 for s in set(signs)} == {
        (x, y): True for x in (-1.0, 1.0) for y in (-1.0, 1.0)
    }
    angles_deg = [np.rad2deg(np.arctan(m[1, 0] / m[0, 0])) for m in matrices]
    assert -22.5 <= min(angles_deg) < -22
    assert 22 < max(angles_deg) <= 22.5


@pytest.mark.parametrize(
    "ranges", [{"rotation_deg": (10, -10)}, {"scale": (0, 1)}, {"scale": (1.1, 0.9)}, {"translation_std_m": (0, -1, 0)}]
)
def test_impossible_ranges_are_refused(ranges: dict) -> None:
    with pytest.raises(ConfigError, match="a range of the BEV augmentation is impossible; got rotation_deg"):
        BevAugmentConfig.parse(ranges, "here")


# What moves


@pytest.mark.parametrize("seed", range(8))
def test_boxes_move_with_their_corners(seed: int) -> None:
    matrix = drawn(seed, PUBLIC_AUGMENT.model_copy(update={"translation_std_m": (1.0, 2.0, 0.5)}))
    box = np.array([[10.0, -4.0, -1.0, 4.0, 2.0, 1.5, 0.3, 3.0, 1.0]], np.float32)
    moved = transform_boxes(box, matrix)
    corners = lambda b: {tuple(np.round(c, 3)) for c in footprint(b[0])}  # noqa: E731
    expected = footprint(box[0]) @ matrix[:2, :2].T + matrix[:2, 3]
    assert corners(moved) == {tuple(np.round(c, 3)) for c in expected}
    nose = box[0, :2] + 2 * np.array([np.cos(0.3), np.sin(0.3)])
    moved_nose = moved[0, :2] + moved[0, 3] / 2 * np.array([np.cos(moved[0, 6]), np.sin(moved[0, 6])])
    np.testing.assert_allclose(moved_nose, matrix[:2, :2] @ nose + matrix[:2, 3], atol=1e-4)
    np.testing.assert_allclose(moved[0, 7:9], matrix[:2, :2] @ box[0, 7:9], atol=1e-5)
    top, moved_top = box[0, 2] + box[0, 5], moved[0, 2] + moved[0, 5]
    np.testing.assert_allclose(moved_top, matrix[2, 2] * top + matrix[2, 3], atol=1e-5)


def footprint(box: np.ndarray) -> np.ndarray:
    x, y, _, length, width, _, yaw = box[:7]
    turned = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    signs = np.array([[l, w] for l in (-1, 1) for w in (-1, 1)])  # noqa: E741
    return signs * (length / 2, width / 2) @ turned.T + (x, y)


def test_points_keep_what_follows_z() -> None:
    points = np.array([[1, 2, 3, 77, 0.25], [-4, 0, 1, 5, 0]], np.float32)
    moved = transform_points(points, drawn(0, BevAugmentConfig(rotation_deg=(90, 90), scale=(2, 2))))
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, [[-4, 2, 6, 77, 0.25], [0, -8, 2, 5, 0]], atol=1e-6)


def test_reflections_move_points_exactly() -> None:
    points = np.random.default_rng(0).normal(0, 30, (1000, 5)).astype(np.float32)
    for name, signs in {"canonical": (1, 1), "flip_x": (-1, 1), "flip_y": (1, -1), "flip_xy": (-1, -1)}.items():
        (matrix,) = view_matrices((name,), None, "a token")
        expected = points * np.array([*signs, 1, 1, 1], np.float32)
        np.testing.assert_array_equal(transform_points(points, matrix), expected)


# The views of a store


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ("canonical",)),
        ({"reflections": 2}, ("canonical", "flip_y")),
        ({"reflections": 4}, ("canonical", "flip_x", "flip_y", "flip_xy")),
        ({"canonical": False, "drawn": 2}, ("drawn0", "drawn1")),
        ({"drawn": 1}, ("canonical", "drawn0")),
        ({"reflections": 2, "drawn": 2, "seed": 3}, ("canonical", "flip_y", "drawn0", "drawn1")),
    ],
)
def test_names_and_their_order(values: dict, names: tuple[str, ...]) -> None:
    config = ViewsConfig.parse(values, "here")
    assert config.names == names
    drawn_views = DrawnViews(seed=values.get("seed", 0)) if "drawn" in values else None
    assert config.drawn_views == drawn_views
    require_views(config.names, config.drawn_views)


def test_a_dump_without_a_view_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the dump has no view \(views\)\. Set views.canonical to true"):
        ViewsConfig.parse({"canonical": False}, "here")


@pytest.mark.parametrize("reflections", [1, 3, "all"])
def test_only_2_or_4_reflections(reflections: object) -> None:
    with pytest.raises(ConfigError, match="reflections: Input should be 0, 2 or 4"):
        ViewsConfig.parse({"reflections": reflections}, "here")


@pytest.mark.parametrize(
    ("names", "drawn_views"),
    [
        ((), None),
        (("flip_y", "canonical"), None),
        (("canonical", "canonical"), None),
        (("drawn0",), None),
        (("canonical",), DrawnViews()),
        (("drawn1", "drawn0"), DrawnViews()),
        (("drawn0", "canonical"), DrawnViews()),
    ],
)
def test_views_out_of_order_are_refused(names: tuple[str, ...], drawn_views: DrawnViews | None) -> None:
    with pytest.raises(ConfigError, match="the views of a store are out of order; got"):
        require_views(names, drawn_views)


def test_reflections_by_hand() -> None:
    matrices = view_matrices(ViewsConfig(reflections=4).names, None, "any")
    assert matrices.dtype == np.float32
    assert [np.diag(m).tolist() for m in matrices] == [[1, 1, 1, 1], [-1, 1, 1, 1], [1, -1, 1, 1], [-1, -1, 1, 1]]
    assert np.linalg.det(matrices).tolist() == [1, -1, -1, 1]


def test_a_drawn_matrix_depends_on_seed_token_and_number_alone() -> None:
    names, how = ("canonical", "drawn0", "drawn1"), DrawnViews(seed=5)
    matrices = view_matrices(names, how, "aa")
    np.testing.assert_array_equal(matrices[0], np.eye(4))
    key = int(hashlib.sha256(b"aa").hexdigest(), 16)
    expected = bev_matrix(PUBLIC_AUGMENT, np.random.default_rng((5, 1, key)))
    np.testing.assert_array_equal(matrices[2], expected.astype(np.float32))
    np.testing.assert_array_equal(view_matrices(("drawn0", "drawn1", "drawn2"), how, "aa")[:2], matrices[1:])
    others = [view_matrices(names, how, "ab"), view_matrices(names, DrawnViews(seed=6), "aa")]
    assert all((matrices[1:] != other[1:]).any(axis=(1, 2)).all() for other in others)
    assert (matrices[1] != matrices[2]).any()


# The nearest view


def test_remaining_metres_by_hand() -> None:
    offset = np.eye(4)
    offset[:3, 3] = 3, 4, 99  # what happens to z does not show in BEV
    # A chord of 60 degrees is a radius; 5 % of 30 m; a 3-4-5 triangle.
    matrices = np.stack([np.eye(4), turn(60), np.diag([1.05, 1.05, 1.05, 1]), offset])[None]
    np.testing.assert_allclose(residual_displacement_m(matrices), [[0, 30, 1.5, 5]], atol=1e-12)
    np.testing.assert_allclose(residual_displacement_m(matrices, radius_m=10), [[0, 10, 0.5, 5]], atol=1e-12)


def test_remaining_metres_are_the_mean_displacement() -> None:
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    rim = 30 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    moving = BevAugmentConfig(**{**PUBLIC_AUGMENT.model_dump(), "translation_std_m": (2.0, 2.0, 0.0)})
    matrices = np.stack([drawn(seed, moving) for seed in range(5)])
    moved = [np.linalg.norm(rim @ m[:2, :2].T + m[:2, 3] - rim, axis=1) for m in matrices]
    np.testing.assert_allclose(
        residual_displacement_m(matrices[None]), [np.sqrt(np.square(moved).mean(axis=1))], rtol=1e-6
    )


@pytest.mark.parametrize("degrees", [-22.5, 0.0, 11.0])
@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_each_flip_finds_its_own_reflection(signs: tuple[int, int], degrees: float) -> None:
    names = ViewsConfig(reflections=4).names
    stored = view_matrices(names, None, "any")[None]
    (chosen,) = nearest_view((mirror(*signs) @ turn(degrees))[None], stored)
    assert np.diag(stored[0, chosen])[:2].tolist() == list(signs)


def test_a_mirror_is_nearer_than_half_a_turn() -> None:
    """A teacher's features depend on headings: half a turn, two mirrors, changes them more than one."""
    stored = view_matrices(("canonical", "flip_y"), None, "any")[None]
    assert nearest_view(mirror(-1, 1)[None], stored).tolist() == [0]
    assert nearest_view(mirror(-1, -1)[None], stored).tolist() == [1]


def test_the_nearest_wins() -> None:
    stored = np.stack([turn(20), turn(-5), np.diag([1.04, 1.04, 1.04, 1.0])])[None]
    assert nearest_view(turn(12)[None], stored).tolist() == [0]
    assert nearest_view(turn(0)[None], stored).tolist() == [2]  # 4 % at 30 m are 1.2 m, 5 degrees are 2.6 m
    assert nearest_view(turn(-4)[None], stored).tolist() == [1]


def test_each_sample_has_its_own_views() -> None:
    names, how = ("canonical", "drawn0", "drawn1", "drawn2"), DrawnViews()
    stored = np.stack([view_matrices(names, how, token) for token in ("a", "b", "c")])
    chosen = [2, 0, 3]
    realised = stored[range(3), chosen]
    assert nearest_view(realised, stored).tolist() == chosen
    remaining = realised.astype(np.float64) @ np.linalg.inv(stored[range(3), chosen].astype(np.float64))
    np.testing.assert_allclose(remaining, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-12)
