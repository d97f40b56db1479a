"""Targets and losses of the centre head; numbers agree with mmdet3d's CenterHead."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CLASSES
from student.config.student import HeadConfig
from student.distill.device import on_device
from student.distill.gaussians import draw_patches, focal_loss, gaussian, gaussian_radius
from student.distill.head_maps import HEAD_MAPS
from student.models.center_head import Tasks, labels_of_channels
from student.models.lift_splat import cell_matrix


@dataclass(frozen=True, kw_only=True)
class HeadTargets:
    """The head's targets for B samples with M boxes.

    heatmap: 1 at each valid box's centre cell, a Gaussian around it.
    valid: boxes inside the grid, of one of the tasks and of some size; the others have no target.
    sample, task, cell: each box's sample, task, and centre cell (row * W + column).
    codes: each box's regression target, in the order of HEAD_MAPS.
    """

    heatmap: Float[Tensor, "B K H W"]
    valid: Bool[Tensor, "M"]
    sample: Int[Tensor, "M"]
    task: Int[Tensor, "M"]
    cell: Int[Tensor, "M"]
    codes: Float[Tensor, "M 10"]


def head_targets(
    boxes: tuple[Float[Tensor, "_ 9"], ...], labels: tuple[Int[Tensor, "_"], ...], grid: BevGrid, config: HeadConfig
) -> HeadTargets:
    """Targets of B samples; boxes outside the grid, of no task, or without a size are not valid."""
    box, label = torch.cat(boxes), torch.cat(labels)
    sample = torch.cat([torch.full_like(of_sample, index) for index, of_sample in enumerate(labels)])
    channel, task = (on_device(table, label)[label] for table in _channel_and_task(config.tasks))
    to_cells, (height, width) = cell_matrix(grid, box), grid.shape
    center = box[:, :2] * to_cells.diagonal()[:2] + to_cells[:2, 2]
    column, row = center.floor().long().unbind(dim=-1)
    valid = (channel >= 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height) & (box[:, 3:6] > 0).all(1)
    # Dropping the others would wait for a device to learn how many there are; they become boxes of 1 m in cell 0.
    channel, task, row, column = (torch.where(valid, index, 0) for index in (channel, task, row, column))
    size = torch.where(valid[:, None], box[:, 3:6], 1.0)

    length, breadth = (size[:, :2] * to_cells.diagonal()[:2]).unbind(dim=-1)
    radius = gaussian_radius(length, breadth, config.gaussian_overlap).floor().clamp(min=config.min_radius)
    channels = sum(len(names) for names in config.tasks)
    shape = (len(boxes) * channels, height, width)
    drawn = torch.where(valid, radius, -1.0)
    heatmap = draw_patches(gaussian, sample * channels + channel, row, column, drawn, shape)
    offset, middle = center - center.floor(), box[:, 2:3] + box[:, 5:6] / 2
    yaw = box[:, 6:7]
    return HeadTargets(
        heatmap=heatmap.unflatten(0, (len(boxes), channels)),
        valid=valid,
        sample=sample,
        task=task,
        cell=row * width + column,
        codes=torch.cat([offset, middle, size.log(), yaw.sin(), yaw.cos(), box[:, 7:9]], dim=1),
    )


def _channel_and_task(tasks: Tasks) -> tuple[list[int], list[int]]:
    """The heatmap's channel and the task of each label; -1 for labels of no task."""
    channels, task_of = [-1] * len(CLASSES), [-1] * len(CLASSES)
    of_channels = [task for task, names in enumerate(tasks) for _ in names]
    for channel, (label, task) in enumerate(zip(labels_of_channels(tasks), of_channels, strict=True)):
        channels[label], task_of[label] = channel, task
    return channels, task_of


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
    """L1 of the codes at the valid boxes' centre cells, each task divided by its number of them."""
    where = (targets.sample, targets.task, slice(None), targets.cell)
    predicted = torch.cat([maps[name].flatten(-2)[where] for name in HEAD_MAPS], dim=1).float()
    difference = torch.where(targets.valid[:, None], predicted - targets.codes, 0.0)
    error = difference.abs() * on_device(code_weights, predicted)
    of_task = targets.task[:, None] == torch.arange(maps["reg"].shape[1], device=predicted.device)
    boxes_of_task = (of_task & targets.valid[:, None]).sum(dim=0)
    return (error.sum(dim=1) / (boxes_of_task[targets.task] + 1e-4)).sum()
