"""Lift-splat beside a plain index_add of the same elements, at full size."""

import torch
from torch import Tensor

from benchmarks.objective import measure, report
from student.config.student import DetectorConfig
from student.data.batch import Batch
from student.models.lift_splat import Cameras, cells_of_points, frustum_points, pool


def measure_lift(batch: Batch, config: DetectorConfig, image_size: tuple[int, int], rounds: int, device: str) -> None:
    """Print time and memory of both, forward and backward, with the cameras of a batch."""
    batch = batch.to(device)
    size = (image_size[0] // config.image_stride, image_size[1] // config.image_stride)
    cameras = Cameras(
        intrinsics=batch.intrinsics[:, 0],
        image_matrix=batch.image_matrix[:, 0],
        camera_to_lidar=batch.camera_to_lidar[:, 0],
        bev_matrix=batch.bev_matrix,
    )
    samples, views = cameras.intrinsics.shape[:2]
    context = torch.randn(samples, views, *size, config.lift_channels, device=device, requires_grad=True)
    logits = torch.randn(samples, views, *size, config.depth_bins, device=device, requires_grad=True)

    def elements() -> tuple[Tensor, Tensor]:
        points_m = frustum_points(cameras, image_size, size, config.bin_depths_m)
        return cells_of_points(points_m, config.grid, config.z_range_m)

    def splat() -> Tensor:
        return pool(context, logits.softmax(-1), *elements(), config.grid.shape)

    def plain() -> Tensor:
        cells, inside = elements()
        frustum = (logits.softmax(-1)[..., None] * context[..., None, :])[inside]
        first_cell = torch.arange(samples, device=device).view(-1, 1, 1, 1, 1) * cells_in_grid
        flat = torch.zeros(samples * cells_in_grid, config.lift_channels, device=device)
        bev = flat.index_add(0, (cells + first_cell)[inside], frustum)
        return bev.unflatten(0, (samples, *config.grid.shape)).permute(0, 3, 1, 2)

    cells_in_grid = config.grid.shape[0] * config.grid.shape[1]
    difference = (splat() - plain()).abs().max().item()
    frustum_bytes = samples * views * config.depth_bins * size[0] * size[1] * config.lift_channels * 4
    print(f"\nlargest difference of the two maps: {difference:.1e}; the frustum takes {frustum_bytes / 1e6:.1f} MB")
    candidates = {"index_add": lambda: plain().sum().backward(), "lift-splat": lambda: splat().sum().backward()}
    title = f"lift-splat of {samples} x {views} x {config.depth_bins} x {size[0]} x {size[1]} x {config.lift_channels}"
    report(f"{title}, forward and backward", measure(candidates, rounds, device), floor="index_add")
