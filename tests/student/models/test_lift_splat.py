import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cache.geometry.grid import BevGrid
from student.config.student import DetectorConfig
from student.models.depth_net import PlainDepthNet
from student.models.lift_splat import Cameras, LiftSplat, cell_matrix, cells_of_points, frustum_points, pool

GRID = BevGrid(x_range_m=(-4.0, 4.0), y_range_m=(0.0, 12.0), cell_m=(1.0, 2.0))  # 6 x 8
BINS_M = (1.0, 5.0, 2.0)
DEPTHS_M = (1.0, 3.0)


def forward_camera(samples: int = 1, views: int = 1) -> Cameras:
    """Focal length 10, centre (15, 7); looks along +y of the LiDAR, from (0.5, 1, 2)."""
    pose = torch.tensor([[1.0, 0, 0, 0.5], [0, 0, 1, 1], [0, -1, 0, 2], [0, 0, 0, 1]])
    return Cameras(
        intrinsics=torch.tensor([[10.0, 0, 15], [0, 10, 7], [0, 0, 1]]).expand(samples, views, 3, 3),
        image_matrix=torch.eye(3).expand(samples, views, 3, 3),
        camera_to_lidar=pose.expand(samples, views, 4, 4),
        bev_matrix=torch.eye(4).expand(samples, 4, 4),
    )


def random_cameras(samples: int, views: int, seed: int = 0) -> Cameras:
    g = torch.Generator().manual_seed(seed)
    pose = torch.eye(4).repeat(samples, views, 1, 1)
    pose[..., :3, :3] = torch.linalg.qr(torch.randn(samples, views, 3, 3, generator=g))[0]
    pose[..., :3, 3] = torch.randn(samples, views, 3, generator=g)
    image = torch.eye(3).repeat(samples, views, 1, 1)
    image[..., :2, :2] = 0.5 * torch.eye(2) + 0.1 * torch.randn(samples, views, 2, 2, generator=g)
    image[..., :2, 2] = torch.randn(samples, views, 2, generator=g)
    bev = torch.eye(4).repeat(samples, 1, 1)
    bev[:, :2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    bev[:, 0] *= -1
    return Cameras(
        intrinsics=forward_camera(samples, views).intrinsics,
        image_matrix=image,
        camera_to_lidar=pose,
        bev_matrix=bev,
    )


def test_cells_are_counted_as_the_grid_says() -> None:
    points = torch.tensor(
        [[-4.0, 0, 0], [3.99, 11.9, 0], [0.5, 3, 0], [4.0, 3, 0], [0, -0.1, 0], [0, 3, 5], [0, 3, -1]]
    )
    cells, valid = cells_of_points(points, GRID, (-1.0, 5.0))
    assert valid.tolist() == [True, True, True, False, False, False, True]
    assert cells[valid].tolist() == [0, 5 * 8 + 7, 1 * 8 + 4, 1 * 8 + 4]


def test_cell_matrix_agrees_with_the_grid() -> None:
    xy = np.array([[0.3, 7.9], [-2.0, 0.1]])
    ours = (
        cell_matrix(GRID, torch.zeros(1, dtype=torch.float64))
        @ torch.tensor([[0.3, -2.0], [7.9, 0.1], [1.0, 1.0]]).double()
    )
    np.testing.assert_allclose(ours[:2].T, GRID.to_cells(xy), atol=1e-6)


def test_frustum_by_hand() -> None:
    # The map's columns stand at pixels 0 and 31, its rows at 0 and 15.
    points = frustum_points(forward_camera(), (16, 32), (2, 2), DEPTHS_M)
    assert points.shape == (1, 1, 2, 2, 2, 3)
    # Pixel (31, 15): right by 1.6 and down by 0.8 for each metre of depth.
    torch.testing.assert_close(points[0, 0, 1, 1, 0], torch.tensor([0.5 + 1.6, 1.0 + 1, 2.0 - 0.8]))
    torch.testing.assert_close(points[0, 0, 1, 1, 1], torch.tensor([0.5 + 4.8, 1.0 + 3, 2.0 - 2.4]))
    # Pixel (0, 0): left by 1.5, up by 0.7.
    torch.testing.assert_close(points[0, 0, 0, 0, 0], torch.tensor([0.5 - 1.5, 1.0 + 1, 2.0 + 0.7]))


def test_frustum_undoes_the_image_augmentation_and_applies_the_bev_one() -> None:
    """A point that is projected and augmented by hand is found again at its pixel and depth."""
    cameras = random_cameras(2, 3)
    points = frustum_points(cameras, (16, 32), (3, 5), DEPTHS_M).double().numpy()
    for b, n, row, column, d in [(0, 0, 0, 0, 0), (1, 2, 2, 4, 1), (1, 0, 1, 3, 0)]:
        bev, pose, image, intrinsics = (
            m.double().numpy()
            for m in (
                cameras.bev_matrix[b],
                cameras.camera_to_lidar[b, n],
                cameras.image_matrix[b, n],
                cameras.intrinsics[b, n],
            )
        )
        lidar = np.linalg.inv(bev) @ [*points[b, n, row, column, d], 1]
        in_camera = np.linalg.inv(pose) @ lidar
        pixel = image @ (intrinsics @ (in_camera[:3] / in_camera[2]))
        assert in_camera[2] == pytest.approx((1.0, 3.0)[d], rel=1e-4)
        np.testing.assert_allclose(pixel[:2], [31 * column / 4, 15 * row / 2], atol=1e-3)


def test_frustum_ignores_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        valid = frustum_points(random_cameras(1, 2), (16, 32), (3, 5), DEPTHS_M)
    assert torch.equal(valid, frustum_points(random_cameras(1, 2), (16, 32), (3, 5), DEPTHS_M))


def random_elements(
    samples: int = 2, views: int = 2, height: int = 3, width: int = 4, bins: int = 5, channels: int = 3, cells: int = 48
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    context = torch.randn(samples, views, height, width, channels, generator=g, dtype=torch.float64)
    probability = torch.rand(samples, views, height, width, bins, generator=g, dtype=torch.float64)
    where = torch.randint(0, cells, probability.shape, generator=g)
    valid = torch.rand(probability.shape, generator=g) < 0.8
    return context, probability, where, valid


def pooled_slowly(context: Tensor, probability: Tensor, cells: Tensor, valid: Tensor, shape: tuple[int, int]) -> Tensor:
    result = torch.zeros(len(context), context.shape[-1], *shape, dtype=context.dtype)
    for b, n, v, u, d in np.ndindex(*probability.shape):
        if valid[b, n, v, u, d]:
            row, column = divmod(int(cells[b, n, v, u, d]), shape[1])
            result[b, :, row, column] += probability[b, n, v, u, d] * context[b, n, v, u]
    return result


def test_pooling_agrees_with_a_loop_over_points() -> None:
    elements = random_elements()
    torch.testing.assert_close(pool(*elements, (6, 8)), pooled_slowly(*elements, (6, 8)))


def test_pooling_has_the_right_gradients() -> None:
    context, probability, cells, valid = random_elements(samples=1, height=2, width=2, bins=3, cells=6)
    context.requires_grad_(), probability.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, p: pool(c, p, cells, valid, (2, 3)), (context, probability))


def test_pooling_of_nothing_is_zero() -> None:
    context, probability, cells, valid = random_elements()
    context.requires_grad_()
    bev = pool(context, probability, cells, torch.zeros_like(valid), (6, 8))
    bev.sum().backward()
    assert bev.shape == (2, 3, 6, 8)
    assert not bev.any()
    assert context.grad is not None and not context.grad.any()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


def test_lift_never_builds_the_frustum_volume() -> None:
    config = DetectorConfig(
        lift_channels=16, grid=BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(3.2, 3.2))
    )
    lift = LiftSplat(config, PlainDepthNet(8, config.depth_bins, 16))
    features = torch.randn(1, 6, 8, 4, 11, requires_grad=True)
    with LargestTensor() as largest:
        bev, logits = lift(features, forward_camera(1, 6))
        bev.sum().backward()
    assert logits.shape == (1, 6, 59, 4, 11)
    frustum_points_count = 6 * 59 * 4 * 11
    # The largest is the points' own (x, y, z); the volume would hold 16 channels for each of them.
    assert largest.elements == 3 * frustum_points_count


def test_pooling_costs_at_most_twice_a_plain_index_add() -> None:
    """Measured about 5 times faster at this, the full size; the bound leaves room for a busy machine."""
    context, probability, cells, valid = random_elements(1, 6, 16, 44, 59, 64, cells=128 * 128)
    context, probability = (x.float().requires_grad_() for x in (context, probability))

    def plain() -> Tensor:
        volume = (probability[..., None] * context[..., None, :])[valid]
        return torch.zeros(128 * 128, 64).index_add(0, cells[valid], volume)

    def seconds(run) -> float:
        start = time.process_time()
        run().sum().backward()
        return time.process_time() - start

    fast = lambda: pool(context, probability, cells, valid, (128, 128))  # noqa: E731
    torch.testing.assert_close(fast().flatten(2)[0].T, plain(), atol=1e-4, rtol=1e-4)
    assert min(seconds(fast) for _ in range(3)) < 2 * min(seconds(plain) for _ in range(3))


def test_camera_parameters_in_the_public_order() -> None:
    cameras = random_cameras(2, 3)
    ours = cameras.parameters()
    assert ours.shape == (2, 3, 27)
    image, bev, pose = cameras.image_matrix[1, 2], cameras.bev_matrix[1], cameras.camera_to_lidar[1, 2]
    expected = [
        10,
        10,
        15,
        7,
        *image[0],
        *image[1],
        bev[0, 0],
        bev[0, 1],
        bev[1, 0],
        bev[1, 1],
        bev[2, 2],
        *pose[:3].flatten(),
    ]
    torch.testing.assert_close(ours[1, 2], torch.tensor([float(value) for value in expected]))


def test_camera_matrices_in_the_order_of_bevdet_0() -> None:
    cameras = random_cameras(2, 3)
    ours = cameras.matrices()
    assert ours.shape == (2, 3, 33)
    (a, b, u), (c, d, v), _ = cameras.image_matrix[1, 2].tolist()
    pose = cameras.bev_matrix[1] @ cameras.camera_to_lidar[1, 2]
    expected = [
        *cameras.intrinsics[1, 2].flatten().tolist(),
        *(a, b, 0, c, d, 0, 0, 0, 1),
        *(u, v, 0),
        *pose[:3, :3].flatten().tolist(),
        *pose[:3, 3].tolist(),
    ]
    torch.testing.assert_close(ours[1, 2], torch.tensor(expected))


def test_lift_puts_a_bright_pixel_where_its_depth_is() -> None:
    """All of a pixel's probability in one bin: its context lands in that bin's cell, and nowhere else."""
    config = DetectorConfig(
        image_stride=16, lift_channels=2, depth_m=BINS_M, z_range_m=(-10, 10), grid=GRID.resized((8, 8))
    )
    logits = torch.full((1, 4, 1, 2), -100.0)
    logits[0, 1] = 100.0  # the bin at 3 m
    logits[0, 2:, 0, 1] = torch.tensor([5.0, 7.0])  # context of the right pixel
    logits[0, 2:, 0, 0] = 0

    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
            return logits

    bev, _ = LiftSplat(config, Fixed())(torch.zeros(1, 1, 2, 1, 2), forward_camera())
    # Pixel (31, 0) at 3 m is (5.3, 4): out of the grid. Closer to the axis with a longer focal length:
    assert not bev.any()
    camera = forward_camera()
    camera.intrinsics.data[..., 0, 0] = 20.0
    bev, _ = LiftSplat(config, Fixed())(torch.zeros(1, 1, 2, 1, 2), camera)
    # x = 0.5 + 3 * 16 / 20 = 2.9 -> column 6; y = 4 -> row 4 / 1.5 = 2.
    assert bev[0, :, 2, 6].tolist() == [5.0, 7.0]
    assert bev.sum() == 12


def test_the_whole_lift_agrees_with_the_public_formulas_point_by_point() -> None:
    """Every pixel and bin by itself, in float64, as the public view transformer places it."""
    grid = GRID.resized((8, 8))
    config = DetectorConfig(image_stride=16, lift_channels=3, depth_m=BINS_M, z_range_m=(-3, 3), grid=grid)
    cameras, size, bins = random_cameras(2, 3, seed=1), (2, 4), len(DEPTHS_M)
    maps = torch.randn(6, bins + 3, *size, generator=torch.Generator().manual_seed(2))

    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
            return maps

    bev, logits = LiftSplat(config, Fixed())(torch.zeros(2, 3, 1, *size), cameras)
    assert torch.equal(logits, maps[:, :bins].unflatten(0, (2, 3)))
    expected, landed = np.zeros((2, 3, 8, 8)), 0
    image, intrinsics, pose, augment = (
        value.double().numpy()
        for value in (cameras.image_matrix, cameras.intrinsics, cameras.camera_to_lidar, cameras.bev_matrix)
    )
    for sample, view, row, column in np.ndindex(2, 3, *size):
        values = maps[sample * 3 + view, :, row, column].double()
        probability, context = values[:bins].softmax(dim=0).numpy(), values[bins:].numpy()
        # The map's pixels spread over the image of 32 x 64 from its first to its last pixel.
        pixel = np.array([column * 63 / 3, row * 31 / 1])
        at = image[sample, view]
        original = np.linalg.solve(at[:2, :2], pixel - at[:2, 2])
        for share, depth_m in zip(probability, DEPTHS_M, strict=True):
            in_camera = np.linalg.solve(intrinsics[sample, view], np.array([*(original * depth_m), depth_m]))
            x, y, z = (augment[sample] @ pose[sample, view] @ np.array([*in_camera, 1.0]))[:3]
            cell = np.floor(grid.to_cells(np.array([x, y]))).astype(int)
            if ((cell >= 0) & (cell < 8)).all() and -3 <= z < 3:
                expected[sample, :, cell[1], cell[0]] += share * context
                landed += 1
    assert landed > 5
    torch.testing.assert_close(bev, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)
