"""Targets and losses of the centre head; numbers agree with mmdet3d's CenterHead."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CLASSES
from student.config.student import HeadConfig
from student.distill.gaussians import draw_patches, focal_loss, gaussian, gaussian_radius
from student.distill.head_maps import HEAD_MAPS
from student.models.center_head import Tasks, labels_of_channels
from student.models.lift_splat import cell_matrix


@dataclass(frozen=True, kw_only=True)
class HeadTargets:
    """The head's targets for B samples with M boxes inside the grid.

    heatmap: 1 at each box's centre cell, a Gaussian around it.
    sample, task, cell: each box's sample, task, and centre cell (row * W + column).
    codes: each box's regression target, in the order of HEAD_MAPS.
    """

    heatmap: Float[Tensor, "B K H W"]
    sample: Int[Tensor, "M"]
    task: Int[Tensor, "M"]
    cell: Int[Tensor, "M"]
    codes: Float[Tensor, "M 10"]


def head_targets(
    boxes: tuple[Float[Tensor, "_ 9"], ...], labels: tuple[Int[Tensor, "_"], ...], grid: BevGrid, config: HeadConfig
) -> HeadTargets:
    """Targets of B samples; boxes outside the grid, of no task, or without a size are left out."""
    device = boxes[0].device
    counts = torch.tensor([len(b) for b in boxes], device=device)
    sample = torch.arange(len(boxes), device=device).repeat_interleave(counts)
    box, label = torch.cat(boxes), torch.cat(labels)
    channels = torch.full((len(CLASSES),), -1, device=device)
    of_channels = labels_of_channels(config.tasks)
    channels[of_channels] = torch.arange(len(of_channels), device=device)
    channel = channels[label]
    to_cells, (height, width) = cell_matrix(grid, box), grid.shape
    center = box[:, :2] * to_cells.diagonal()[:2] + to_cells[:2, 2]
    column, row = center.floor().long().unbind(dim=-1)
    valid = (channel >= 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height) & (box[:, 3:6] > 0).all(1)
    sample, box, channel, center, column, row = (v[valid] for v in (sample, box, channel, center, column, row))

    length, breadth = (box[:, 3:5] * to_cells.diagonal()[:2]).unbind(dim=-1)
    radius = gaussian_radius(length, breadth, config.gaussian_overlap).floor().clamp(min=config.min_radius)
    plane, planes = sample * len(of_channels) + channel, len(boxes) * len(of_channels)
    heatmap = draw_patches(gaussian, plane, row, column, radius, (planes, height, width))
    task_of_channel = torch.tensor([t for t, names in enumerate(config.tasks) for _ in names], device=device)
    offset, middle = center - center.floor(), box[:, 2:3] + box[:, 5:6] / 2
    yaw = box[:, 6:7]
    return HeadTargets(
        heatmap=heatmap.unflatten(0, (len(boxes), len(of_channels))),
        sample=sample,
        task=task_of_channel[channel],
        cell=row * width + column,
        codes=torch.cat([offset, middle, box[:, 3:6].log(), yaw.sin(), yaw.cos(), box[:, 7:9]], dim=1),
    )


def heatmap_loss(logits: Float[Tensor, "B K H W"], target: Float[Tensor, "B K H W"], tasks: Tasks) -> Float[Tensor, ""]:
    """Gaussian focal loss (CornerNet, equation 1; alpha = 2, beta = 4), each task divided by its number of peaks."""
    probability = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    by_class = focal_loss(probability, target).sum(dim=(0, 2, 3))
    sizes = [len(task) for task in tasks]
    by_task = zip(by_class.split(sizes), (target == 1).sum(dim=(0, 2, 3)).split(sizes), strict=True)
    return torch.stack([loss.sum() / peaks.sum().clamp(min=1) for loss, peaks in by_task]).sum()


def boxes_loss(
    maps: dict[str, Float[Tensor, "B T _ H W"]], targets: HeadTargets, code_weights: tuple[float, ...]
) -> Float[Tensor, ""]:
    """L1 of the codes at the boxes' centre cells, each task divided by its number of boxes."""
    where = (targets.sample, targets.task, slice(None), targets.cell)
    predicted = torch.cat([maps[name].flatten(-2)[where] for name in HEAD_MAPS], dim=1).float()
    error = (predicted - targets.codes).abs() * predicted.new_tensor(code_weights)
    boxes_of_task = targets.task.bincount(minlength=maps["reg"].shape[1])
    return (error.sum(dim=1) / (boxes_of_task[targets.task] + 1e-4)).sum()
