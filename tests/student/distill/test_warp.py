"""Maps of one grid as another sees them: where they are exact, where they are close, and where they say nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from cache.geometry.grid import BevGrid
from cache.spec import CodecSpec
from cache.store.codec import encode
from student.distill.feature_stats import feature_stats
from student.distill.warp import to_teacher, warp, warp_max

GRID = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
WIDE = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0), cell_m=(1.0, 1.0))
FINE = BevGrid(x_range_m=(-54.0, 54.0), y_range_m=(-54.0, 54.0), cell_m=(0.6, 0.6))


def matrix(rotation_deg: float = 0.0, scale: float = 1.0, shift_m: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """(1, 4, 4): rotate counter-clockwise, scale, shift."""
    cosine, sine = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    whole = torch.eye(4)
    whole[:2, :2] = scale * torch.tensor([[cosine, -sine], [sine, cosine]])
    whole[2, 2] = scale
    whole[:2, 3] = torch.tensor(shift_m)
    return whole[None]


FLIP_X = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))[None]


def drawn(function: Callable, grid: BevGrid) -> Tensor:
    """A map (1, 1, H, W) of a function of (x, y) at the centres of cells."""
    return torch.from_numpy(function(*np.moveaxis(grid.centers_m(), -1, 0))).float()[None, None]


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(x / 9) * np.cos(y / 7)


def tilted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear reading has no error on a plane."""
    return 3 + 0.5 * x - 0.25 * y


@pytest.mark.parametrize("grid", [GRID, WIDE, FINE], ids=["square", "wide", "180"])
@pytest.mark.parametrize(
    ("to_source", "expected"),
    [
        (matrix(), lambda maps: maps),
        (FLIP_X, lambda maps: maps.flip(-1)),
        (FLIP_X @ matrix(180), lambda maps: maps.flip(-2)),
        (matrix(180), lambda maps: maps.flip(-1, -2)),
    ],
    ids=["identity", "flip x", "flip y", "half turn"],
)
def test_identity_and_flips_are_exact_and_keep_all_cells(grid, to_source, expected):
    codes = encode(torch.rand(1, 3, *grid.shape), CodecSpec())
    warped = warp(codes, grid, grid, to_source)
    assert warped.features.values.dtype == torch.float16
    assert torch.equal(warped.features.decode(), expected(codes.decode()))
    assert torch.equal(warp(codes.decode(), grid, grid, to_source).features, expected(codes.decode()))
    peaks = warp_max(codes.values, grid, grid, to_source)
    assert torch.equal(peaks.features, expected(codes.values))
    assert warped.valid_mask.all() and peaks.valid_mask.all()


@pytest.mark.parametrize("grid", [GRID, FINE], ids=["128", "180"])
@pytest.mark.parametrize("turns", [1, 3, 5])
def test_quarter_turns_are_exact_and_keep_all_cells(grid, turns):
    maps = torch.rand(1, 2, *grid.shape)
    warped = warp(maps, grid, grid, matrix(90.0 * turns))
    # Turned by +90 degrees, (x, y) reads (-y, x): row r, column c reads row c, column W - 1 - r, which is rot90's rule.
    assert torch.equal(warped.features, torch.rot90(maps, turns, (-2, -1)))
    assert torch.equal(warp_max(maps, grid, grid, matrix(90.0 * turns)).features, warped.features)
    assert warped.valid_mask.all()


@pytest.mark.parametrize("target", [GRID, FINE, WIDE.resized((24, 32))], ids=["the same", "finer and larger", "within"])
@pytest.mark.parametrize(("rotation_deg", "scale"), [(22.5, 0.95), (-17.0, 1.05), (3.0, 1.0)])
def test_a_smooth_function_is_read_where_it_lies(target, rotation_deg, scale):
    to_source = matrix(rotation_deg, scale, (2.0, -1.0))
    warped = warp(drawn(smooth, GRID), GRID, target, to_source)
    there = np.concatenate([target.centers_m(), np.zeros((*target.shape, 1)), np.ones((*target.shape, 1))], axis=-1)
    x, y = np.moveaxis(there @ to_source[0].double().numpy().T, -1, 0)[:2]
    error = (warped.features[0, 0].numpy() - smooth(x, y))[warped.valid_mask[0].numpy()]
    # Bilinear: cell^2 / 8 times the second derivatives, 1 / 81 and 1 / 49.
    assert np.abs(error).max() < 0.8**2 / 8 * (1 / 81 + 1 / 49) + 1e-5
    assert warped.valid_mask.float().mean() > 0.6


def test_as_scipy_reads_it():
    """An independent bilinear interpolation, with the same zeros outside."""
    to_source, maps = matrix(31.0, 1.02, (0.7, 0.3)), torch.rand(1, 1, *WIDE.shape)
    x, y = np.moveaxis(WIDE.centers_m(), -1, 0)
    metres = np.stack([x, y, 0 * x, 1 + 0 * x], axis=-1) @ to_source[0].double().numpy().T
    column, row = np.moveaxis(WIDE.to_cells(metres[..., :2]) - 0.5, -1, 0)
    expected = ndimage.map_coordinates(np.pad(maps[0, 0].double().numpy(), 9), (row + 9, column + 9), order=1)
    warped = warp(maps, WIDE, WIDE, to_source)
    np.testing.assert_allclose(warped.features[0, 0], expected, atol=1e-5)
    inside = (column >= 0) & (column <= 15) & (row >= 0) & (row <= 11)
    np.testing.assert_array_equal(warped.valid_mask[0], inside)


def test_each_sample_has_its_own_matrix():
    maps = torch.rand(3, 2, *WIDE.shape)
    matrices = torch.cat([matrix(), matrix(30), FLIP_X])
    together = warp(maps, WIDE, WIDE, matrices)
    for index in range(3):
        alone = warp(maps[index : index + 1], WIDE, WIDE, matrices[index : index + 1])
        assert torch.equal(together.features[index], alone.features[0])
        assert torch.equal(together.valid_mask[index], alone.valid_mask[0])


def test_inside_by_hand():
    """16 x 12 cells of 1 m; reading 1.25 m further right needs columns c + 1 and c + 2: the last two have none."""
    warped = warp(torch.ones(1, 1, *WIDE.shape), WIDE, WIDE, matrix(shift_m=(1.25, -1.0)))
    expected = torch.ones(WIDE.shape, dtype=torch.bool)
    expected[:, 14:] = False
    expected[0] = False
    assert torch.equal(warped.valid_mask[0], expected)
    # Half a neighbour outside counts as 0: 0.75 of column 15 are left in column 14, and nothing in column 15.
    assert warped.features[0, 0, 5].tolist() == [1.0] * 14 + [0.75, 0.0]


def test_a_place_next_to_a_centre_is_that_centre():
    maps = torch.rand(1, 1, *WIDE.shape)
    nearly = matrix(shift_m=(5e-5, -5e-5))
    assert torch.equal(warp(maps, WIDE, WIDE, nearly).features, maps)
    assert warp(maps, WIDE, WIDE, nearly).valid_mask.all()
    assert not warp(maps, WIDE, WIDE, matrix(shift_m=(5e-4, 0.0))).valid_mask.all()


@pytest.mark.parametrize("factor", [2, 3])
def test_larger_cells_get_the_mean_of_what_they_cover(factor):
    grid = BevGrid(x_range_m=(-9.0, 9.0), y_range_m=(-6.0, 6.0), cell_m=(1.0, 1.0))
    maps = torch.rand(1, 4, *grid.shape)
    warped = warp(maps, grid, grid.coarser(factor), matrix())
    torch.testing.assert_close(warped.features, F.avg_pool2d(maps, factor))
    assert warped.valid_mask.all()


def test_nothing_is_skipped_between_larger_cells():
    """Every cell of 0.6 m has about the same part, (0.6 / 0.8)^2 in all, in the cells of 0.8 m."""
    maps = torch.zeros(1, 1, *FINE.shape, dtype=torch.float64, requires_grad=True)
    warp(maps, FINE, GRID, matrix()).features.sum().backward()
    part = maps.grad[0, 0, 10:-10, 10:-10] / 0.75**2
    assert part.min() > 0.9 and part.max() < 1.1


def test_a_teacher_of_another_range_and_stride():
    """180 x 180 cells of 0.6 m over +-54 m, on 128 x 128 of 0.8 m."""
    warped = warp(drawn(tilted, FINE), FINE, GRID, matrix())
    torch.testing.assert_close(warped.features, drawn(tilted, GRID), atol=1e-4, rtol=0)
    assert warped.valid_mask.all()
    back = warp(drawn(tilted, GRID), GRID, FINE, matrix())
    # From 0.8 m to 0.6 m, the cells beyond the outermost centres, 50.8 m from the middle, have nothing to read.
    x, y = np.moveaxis(FINE.centers_m(), -1, 0)
    np.testing.assert_array_equal(back.valid_mask[0], np.maximum(abs(x), abs(y)) < 50.8)
    torch.testing.assert_close(
        back.features[0, 0][back.valid_mask[0]], drawn(tilted, FINE)[0, 0][back.valid_mask[0]], atol=1e-4, rtol=0
    )


def test_rows_along_x():
    turned = WIDE.model_copy(update={"axes": "xy"})
    assert turned.shape == (16, 12)
    maps = torch.rand(1, 2, *WIDE.shape)
    to_source = matrix(20.0, 0.97)
    expected = warp(maps, WIDE, WIDE, to_source)
    for source, target in ((turned, WIDE), (WIDE, turned), (turned, turned)):
        given = maps.mT if source is turned else maps
        warped = warp(given, source, target, to_source)
        features, inside = (part.mT if target is turned else part for part in (warped.features, warped.valid_mask))
        torch.testing.assert_close(features, expected.features)
        assert torch.equal(inside, expected.valid_mask)
    assert torch.equal(warp(maps.mT, turned, WIDE, matrix()).features, maps)


def test_a_map_in_the_frame_of_the_vehicle():
    """nuScenes' LiDAR looks along the vehicle's -y, 0.94 m ahead of the rear axle and 1.84 m above it."""
    ego = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8), frame="ego")
    lidar_to_ego = matrix(-90.0, 1.0, (0.94, 0.0))
    lidar_to_ego[:, 2, 3] = 1.84
    warped = warp(drawn(tilted, ego), ego, GRID, lidar_to_ego)
    # What lies at (x, y) of the LiDAR, x to the right and y ahead, is at (y + 0.94, -x) of the vehicle.
    expected = drawn(lambda x, y: tilted(y + 0.94, -x), GRID)
    torch.testing.assert_close(warped.features[0, 0][warped.valid_mask[0]], expected[0, 0][warped.valid_mask[0]])
    assert warped.valid_mask[0].any(dim=1).tolist() == [True] * 126 + [False] * 2


@pytest.mark.parametrize(
    "codec", [{"kind": "signed"}, {"kind": "float16"}, {"companding": 0.5}, {"kind": "signed", "companding": 0.7}]
)
def test_every_code_is_interpolated_as_its_features_are(codec):
    features = torch.rand(2, 5, *WIDE.shape) - (0.5 if codec.get("kind", "unsigned") != "unsigned" else 0.0)
    codes = encode(features, CodecSpec(**codec))
    to_source = torch.cat([matrix(10.0), matrix(-5.0, 1.05)])
    warped = warp(codes, WIDE, WIDE, to_source).features
    expected = warp(codes.decode(), WIDE, WIDE, to_source).features
    assert warped.values.dtype == torch.float16
    torch.testing.assert_close(warped.decode(), expected, rtol=1e-3, atol=1e-3)
    student = torch.rand(2, 5, *WIDE.shape)
    stored, floats = feature_stats(student, warped), feature_stats(student, warped.decode())
    for name in ("error", "weighted_error", "teacher_sum", "teacher_energy", "teacher_channels"):
        torch.testing.assert_close(getattr(stored, name), getattr(floats, name), rtol=1e-4, atol=1e-4)


def test_more_channels_than_a_block():
    codes = encode(torch.rand(1, 70, 64, 64), CodecSpec())
    grid = BevGrid(x_range_m=(-32.0, 32.0), y_range_m=(-32.0, 32.0), cell_m=(1.0, 1.0))
    warped = warp(codes, grid, grid, matrix(12.0)).features.decode()
    torch.testing.assert_close(warped, warp(codes.decode(), grid, grid, matrix(12.0)).features, rtol=1e-3, atol=1e-3)


def test_gradients_reach_float_features():
    maps = torch.rand(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    grid = BevGrid(x_range_m=(0.0, 5.0), y_range_m=(0.0, 4.0), cell_m=(1.0, 1.0))
    to_source = matrix(13.0, 0.9, (0.3, 0.1)).double()
    assert torch.autograd.gradcheck(lambda x: warp(x, grid, grid, to_source).features, maps, eps=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rotation_deg", "scale"), [(22.5, 0.95), (-9.0, 1.05), (45.0, 1.0)])
def test_no_peak_is_lost_or_lowered(rotation_deg, scale):
    """One peak a channel; bilinear reading lowers them, the nearest cell's misses some."""
    rng = np.random.default_rng(0)
    cells = rng.integers(16, 112, (200, 2))
    maps = torch.zeros(1, 200, *GRID.shape, dtype=torch.uint8)
    maps[0, range(200), cells[:, 0], cells[:, 1]] = 200
    to_source = matrix(rotation_deg, 1 / scale)
    warped = warp_max(maps, GRID, GRID, to_source).features[0]
    assert (warped.amax((1, 2)) == 200).all()
    assert (warped > 0).sum((1, 2)).max() <= 4
    bilinear = warp(maps.float(), GRID, GRID, to_source).features[0].amax((1, 2))
    assert bilinear.mean() < 170

    # The cells that show a peak lie around the place where its point went.
    points = torch.from_numpy(GRID.to_metres(cells[:, ::-1] + 0.5))
    there = (points @ torch.linalg.inv(to_source[0, :2, :2].double()).T).numpy()
    for shown, place in zip(warped, GRID.to_cells(there), strict=True):
        rows, columns = shown.nonzero().numpy().T
        assert np.hypot(columns + 0.5 - place[0], rows + 0.5 - place[1]).max() < 1.2


def test_a_canvas_of_finer_cells_loses_no_point():
    canvas = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0), cell_m=(0.25, 0.25))
    mask = torch.rand(1, *canvas.shape) < 0.05
    expected = F.max_pool2d(mask.float()[None], 4)[0] > 0
    warped = warp_max(mask, canvas, WIDE, matrix())
    assert warped.features.dtype == torch.bool
    assert torch.equal(warped.features, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_reads_as_a_cpu_does() -> None:
    to_source = torch.cat([matrix(31.0, 1.02), FLIP_X])
    codes = encode(torch.rand(2, 5, *GRID.shape), CodecSpec())
    here, there = warp(codes, GRID, GRID, to_source), warp(codes.to("cuda"), GRID, GRID, to_source)
    assert there.features.values.is_cuda
    torch.testing.assert_close(there.features.values.cpu(), here.features.values, rtol=1e-3, atol=0.13)
    assert torch.equal(there.features.values[1].cpu(), codes.values[1].flip(-1).half())
    assert torch.equal(there.valid_mask.cpu(), here.valid_mask)
    peaks = warp_max(codes.values, GRID, GRID, to_source)
    assert torch.equal(warp_max(codes.values.cuda(), GRID, GRID, to_source).features[1].cpu(), peaks.features[1])


def test_the_way_to_a_teachers_frame() -> None:
    view, realised, to_ego = FLIP_X, matrix(17.0, 1.05) @ FLIP_X, matrix(-90.0, 1.0, (0.94, 0.0))
    ego = GRID.model_copy(update={"frame": "ego"})
    point = torch.tensor([3.0, 4.0, 0.0, 1.0])
    seen = realised[0] @ point
    for teacher, expected in ((GRID, view[0] @ point), (ego, to_ego[0] @ view[0] @ point)):
        way = to_teacher(GRID, teacher, view, realised, to_ego)
        torch.testing.assert_close((way[0] @ seen.double()).float(), expected)
    back = to_teacher(ego, GRID, view, realised, to_ego)
    torch.testing.assert_close((back[0].float() @ (to_ego[0] @ seen)), view[0] @ point)


def test_where_student_and_teacher_see_the_same_there_is_no_way() -> None:
    realised = matrix(-13.7, 0.97) @ FLIP_X
    assert to_teacher(GRID, FINE, realised, realised, matrix()) is None
    assert to_teacher(GRID, FINE, matrix(), matrix(0.001), matrix()) is not None
    ego = GRID.model_copy(update={"frame": "ego"})
    assert to_teacher(GRID, ego, matrix(), matrix(), matrix()) is not None
