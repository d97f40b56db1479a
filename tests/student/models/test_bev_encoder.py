import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.models.bev_encoder import BevResNet, FpnLss, align

GRID = BevGrid(x_range_m=(-4.0, 4.0), y_range_m=(-3.0, 3.0), cell_m=(1.0, 0.5))  # 12 x 8
SQUARE = BevGrid(x_range_m=(-4.0, 4.0), y_range_m=(-4.0, 4.0), cell_m=(0.5, 0.5))


def motion(dx: float = 0.0, dy: float = 0.0, yaw_rad: float = 0.0) -> Tensor:
    """A rotation about z, then a translation, as (1, 4, 4)."""
    matrix = torch.eye(4)
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    matrix[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    matrix[:2, 3] = torch.tensor([dx, dy])
    return matrix[None]


def at(grid: BevGrid, x: float, y: float) -> tuple[int, int]:
    """(row, column) of the cell at a place."""
    column, row = np.floor(grid.to_cells(np.array([x, y]))).astype(int)
    return int(row), int(column)


def box_map(grid: BevGrid, x: float, y: float) -> Tensor:
    """A map with 1 in the cell of a box."""
    bev = torch.zeros(1, 1, *grid.shape)
    bev[0, 0][at(grid, x, y)] = 1
    return bev


def test_a_standing_map_stays() -> None:
    previous = torch.randn(2, 3, *GRID.shape)
    still = torch.eye(4).expand(2, 4, 4)
    torch.testing.assert_close(align(previous, GRID, still, still), previous, atol=1e-5, rtol=1e-5)


def test_a_standing_box_comes_nearer_as_the_car_drives() -> None:
    """The car went 2 m ahead (+y): what was at y = 2.25 is now at 0.25."""
    aligned = align(box_map(GRID, 1.5, 2.25), GRID, motion(dy=-2.0), torch.eye(4)[None])
    torch.testing.assert_close(aligned, box_map(GRID, 1.5, 0.25), atol=1e-5, rtol=0)


def test_a_box_moved_by_half_a_cell_is_shared_by_two() -> None:
    aligned = align(box_map(GRID, 1.5, 0.25), GRID, motion(dx=-0.5), torch.eye(4)[None])
    row, column = at(GRID, 1.5, 0.25)
    assert aligned[0, 0, row, column - 1].item() == pytest.approx(0.5, abs=1e-5)
    assert aligned[0, 0, row, column].item() == pytest.approx(0.5, abs=1e-5)
    assert aligned.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_turn_to_the_left_moves_boxes_to_the_right() -> None:
    """The car turned 90 degrees to the left: what was ahead (+y) is now on its right (+x)."""
    aligned = align(box_map(SQUARE, 0.25, 2.25), SQUARE, motion(yaw_rad=-np.pi / 2), torch.eye(4)[None])
    torch.testing.assert_close(aligned, box_map(SQUARE, 2.25, -0.25), atol=1e-4, rtol=0)


def test_the_bev_augmentation_is_undone_and_redone() -> None:
    """Mirrored in x, a turn to the left looks like one to the right."""
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1, 1]))[None]
    aligned = align(box_map(SQUARE, -0.25, 2.25), SQUARE, motion(yaw_rad=-np.pi / 2), mirrored)
    torch.testing.assert_close(aligned, box_map(SQUARE, -2.25, -0.25), atol=1e-4, rtol=0)


def test_a_scaled_bev_space_moves_boxes_further() -> None:
    """Enlarged twice, 1 m of driving is 2 m of map."""
    doubled = torch.diag(torch.tensor([2.0, 2, 2, 1]))[None]
    aligned = align(box_map(GRID, 1.5, 2.25), GRID, motion(dy=-1.0), doubled)
    torch.testing.assert_close(aligned, box_map(GRID, 1.5, 0.25), atol=1e-5, rtol=0)


def test_what_was_not_seen_is_zero() -> None:
    aligned = align(torch.ones(1, 1, *GRID.shape), GRID, motion(dx=3.0), torch.eye(4)[None])
    assert not aligned[..., :3].any()
    assert (aligned[..., 3:] > 0.999).all()


def test_any_motion_agrees_with_a_loop_over_cells() -> None:
    previous = torch.randn(1, 2, *GRID.shape, generator=torch.Generator().manual_seed(0))
    to_current, bev = motion(0.7, -0.4, 0.3), motion(yaw_rad=-0.2)
    bev[0, :3, :3] *= 1.05
    aligned = align(previous, GRID, to_current, bev)
    to_previous = (bev @ torch.linalg.inv(to_current) @ torch.linalg.inv(bev))[0].double().numpy()
    padded = np.pad(previous[0].double().numpy(), ((0, 0), (9, 9), (9, 9)))
    for (row, column), center in zip(np.ndindex(*GRID.shape), GRID.centers_m().reshape(-1, 2), strict=True):
        x, y, *_ = to_previous @ [*center, 0, 1]
        u, v = GRID.to_cells(np.array([x, y])) - 0.5  # relative to the cells' centres
        left, top = int(np.floor(u)), int(np.floor(v))
        a, b = u - left, v - top
        corners = padded[:, top + 9 : top + 11, left + 9 : left + 11]
        expected = np.einsum("cij,i,j->c", corners, [1 - b, b], [1 - a, a])
        np.testing.assert_allclose(aligned[0, :, row, column], expected, atol=1e-4)


def test_alignment_ignores_autocast() -> None:
    previous, to_current, bev = torch.randn(1, 2, *GRID.shape), motion(0.7, -0.4, 0.3), torch.eye(4)[None]
    with torch.autocast("cpu", torch.bfloat16):
        inside = align(previous, GRID, to_current, bev)
    assert torch.equal(inside, align(previous, GRID, to_current, bev))


def test_the_encoder_halves_three_times_and_comes_back() -> None:
    maps = BevResNet(8, (16, 32, 64), strides=(2, 2, 2))(torch.randn(2, 8, 16, 24))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 8, 12), (32, 4, 6), (64, 2, 3)]
    assert FpnLss(16 + 64, 20)(maps).shape == (2, 20, 16, 24)


def test_tensors_are_those_of_the_public_encoder() -> None:
    """Names and shapes of BEVDet's CustomResNet (64 -> 128, 256, 512) and FPN_LSS (640 -> 256)."""
    backbone = {k: tuple(v.shape) for k, v in BevResNet(64, (128, 256, 512), strides=(2, 2, 2)).state_dict().items()}
    neck = {k: tuple(v.shape) for k, v in FpnLss(640, 256).state_dict().items()}
    assert {
        "layers.0.0.conv1.weight": (128, 64, 3, 3),
        "layers.0.0.downsample.weight": (128, 64, 3, 3),
        "layers.0.0.downsample.bias": (128,),
        "layers.2.1.bn2.weight": (512,),
    }.items() <= backbone.items()
    assert {
        "conv.0.weight": (512, 640, 3, 3),
        "conv.4.running_var": (512,),
        "up2.1.weight": (256, 512, 3, 3),
        "up2.4.weight": (256, 256, 1, 1),
        "up2.4.bias": (256,),
    }.items() <= neck.items()
