import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CLASSES
from student.config.student import HeadConfig
from student.distill.head_maps import HEAD_MAPS
from student.models.center_targets import (
    HeadTargets,
    boxes_loss,
    head_targets,
    heatmap_loss,
)

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(0.5, 0.5))  # 16 x 32
HEAD = HeadConfig()
CAR, TRUCK, CONE = (CLASSES.index(name) for name in ("car", "truck", "traffic_cone"))


def targets_of(*rows: tuple[int, list[float]], head: HeadConfig = HEAD) -> HeadTargets:
    """Targets of one sample: (label, box) each; of the valid ones alone."""
    return valid_of(all_targets_of(*rows, head=head))


def all_targets_of(*rows: tuple[int, list[float]], head: HeadConfig = HEAD) -> HeadTargets:
    boxes = torch.tensor([box for _, box in rows]).reshape(-1, 9)
    return head_targets((boxes,), (torch.tensor([label for label, _ in rows], dtype=torch.long),), GRID, head)


def valid_of(targets: HeadTargets) -> HeadTargets:
    names = ("valid", "sample", "task", "cell", "codes")
    return replace(targets, **{name: getattr(targets, name)[targets.valid] for name in names})


def box(x: float, y: float, dx: float = 4.0, dy: float = 2.0) -> list[float]:
    return [x, y, -1.0, dx, dy, 1.5, 0.3, 5.0, -1.0]


def test_a_code_by_hand() -> None:
    targets = targets_of((TRUCK, box(1.1, -2.35)))
    assert (targets.sample.tolist(), targets.task.tolist(), targets.cell.tolist()) == ([0], [1], [3 * 32 + 18])
    expected = [0.2, 0.3, -0.25, math.log(4), math.log(2), math.log(1.5), math.sin(0.3), math.cos(0.3), 5, -1]
    torch.testing.assert_close(targets.codes[0], torch.tensor(expected))


def test_a_heatmap_by_hand() -> None:
    targets = targets_of((CONE, box(0.1, 0.1, 0.4, 0.4)))
    assert targets.heatmap.shape == (1, 10, 16, 32)
    assert targets.heatmap[0, :9].sum() == 0
    plane = targets.heatmap[0, 9]
    # The radius is the least allowed, 2: sigma = 5 / 6, nothing beyond 2 cells.
    assert plane[8, 16] == 1
    assert plane[8, 17].item() == pytest.approx(math.exp(-0.5 / (5 / 6) ** 2))
    assert plane[10, 14].item() == pytest.approx(math.exp(-0.5 * 8 / (5 / 6) ** 2))
    assert plane[8, 19] == 0 and plane[5, 16] == 0
    assert (plane > 0).sum() == 25


def test_the_larger_of_two_gaussians_counts() -> None:
    plane = targets_of((CAR, box(0.1, 0.1)), (CAR, box(1.6, 0.1))).heatmap[0, 0]
    assert plane[8, 16] == 1 and plane[8, 19] == 1
    alone = targets_of((CAR, box(0.1, 0.1))).heatmap[0, 0]
    assert plane[8, 17] == alone[8, 17] > alone[8, 18]
    assert plane[8, 18] == alone[8, 17]


def test_gaussians_end_at_the_border() -> None:
    plane = targets_of((CAR, box(-7.9, 3.9))).heatmap[0, 0]
    assert plane[15, 0] == 1
    assert (plane > 0).sum() == 9  # a quarter of the 5 x 5 window


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((CAR, box(8.1, 0)), "beyond x"),
        ((CAR, box(-8.1, 0)), "before x"),
        ((CAR, box(0, 4.0)), "on y's far end"),
        ((CAR, box(0, 0, dx=0.0)), "no length"),
    ],
)
def test_boxes_that_cannot_be_targets_are_left_out(row: tuple[int, list[float]], why: str) -> None:
    targets = targets_of(row, (TRUCK, box(1, 1)))
    assert targets.task.tolist() == [1], why
    assert targets.heatmap[0, 0].sum() == 0


def test_boxes_that_are_left_out_change_neither_targets_nor_loss_nor_gradients() -> None:
    rows = (CAR, box(0, 0)), (TRUCK, box(1, 1))
    extra = (CAR, box(9.0, 0)), (CAR, box(1, 0, dx=-1.0)), (CONE, box(math.nan, 0))
    found = []
    for targets in (targets_of(*rows), all_targets_of(*rows, *extra)):
        maps = [torch.linspace(-1, 1, 6 * width * 512).view(1, 6, width, 16, 32) for width in HEAD_MAPS.values()]
        leaves = [value.requires_grad_() for value in maps]
        loss = boxes_loss(dict(zip(HEAD_MAPS, leaves, strict=True)), targets, HEAD.code_weights)
        found.append([targets.heatmap, loss, *torch.autograd.grad(loss, leaves)])
    for few, every in zip(*found, strict=True):
        torch.testing.assert_close(few, every)


def test_classes_of_no_task_are_left_out() -> None:
    head = HeadConfig(tasks=(("truck",), ("traffic_cone",)))
    targets = targets_of((CAR, box(0, 0)), (CONE, box(1, 1)), head=head)
    assert targets.heatmap.shape[1] == 2
    assert targets.task.tolist() == [1]
    assert (targets.heatmap == 1).nonzero().tolist() == [[0, 1, 10, 18]]


def test_samples_without_boxes() -> None:
    none = (torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))
    one = (torch.tensor([box(0, 0)]), torch.tensor([CAR]))
    targets = head_targets((none[0], one[0], none[0]), (none[1], one[1], none[1]), GRID, HEAD)
    assert targets.valid.tolist() == [True]
    assert targets.sample.tolist() == [1]
    assert targets.heatmap.amax(dim=(1, 2, 3)).tolist() == [0, 1, 0]
    nothing = head_targets((none[0],), (none[1],), GRID, HEAD)
    assert nothing.heatmap.shape == (1, 10, 16, 32) and not nothing.heatmap.any()
    maps = {name: torch.randn(1, 6, width, 16, 32) for name, width in HEAD_MAPS.items()}
    assert boxes_loss(maps, nothing, HEAD.code_weights).item() == 0


def test_heatmap_loss_by_hand() -> None:
    probability = torch.tensor([0.9, 0.2, 0.4, 0.3])
    target = torch.tensor([1.0, 0.5, 0.0, 1.0])
    logits = torch.logit(probability).view(1, 2, 1, 2)
    first = -math.log(0.9) * 0.1**2 - math.log(0.8) * 0.2**2 * 0.5**4  # one peak in the first class
    second = -math.log(0.6) * 0.4**2 - math.log(0.3) * 0.7**2  # one in the second
    together = heatmap_loss(logits, target.view(1, 2, 1, 2), (("car", "truck"),))
    apart = heatmap_loss(logits, target.view(1, 2, 1, 2), (("car",), ("truck",)))
    assert together.item() == pytest.approx((first + second) / 2, rel=1e-4)
    assert apart.item() == pytest.approx(first + second, rel=1e-4)


def test_a_task_without_a_peak_is_divided_by_one() -> None:
    loss = heatmap_loss(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), (("car",),))
    assert loss.item() == pytest.approx(2 * -math.log(0.5) * 0.25)


def test_boxes_loss_by_hand() -> None:
    targets = targets_of((CAR, box(0, 0)), (CAR, box(2, 2)), (TRUCK, box(0, 0)))
    maps = {name: torch.zeros(1, 6, width, 16, 32) for name, width in HEAD_MAPS.items()}
    weights = torch.tensor(HEAD.code_weights)
    errors = (targets.codes.abs() * weights).sum(dim=1)
    expected = (errors[0] + errors[1]) / 2 + errors[2]
    assert boxes_loss(maps, targets, HEAD.code_weights).item() == pytest.approx(expected.item(), rel=1e-3)
    for name, width in HEAD_MAPS.items():
        first = list(HEAD_MAPS).index(name)
        start = sum(list(HEAD_MAPS.values())[:first])
        for sample, task, cell, code in zip(targets.sample, targets.task, targets.cell, targets.codes, strict=True):
            maps[name][sample, task, :, cell // 32, cell % 32] = code[start : start + width]
    assert boxes_loss(maps, targets, HEAD.code_weights).item() == 0


@pytest.fixture(scope="module")
def theirs() -> Any:
    """mmdet3d's CenterHead over the same grid."""
    heads = pytest.importorskip("mmdet3d.models.dense_heads")
    registry = pytest.importorskip("mmengine.registry")
    registry.init_default_scope("mmdet3d")
    return heads.CenterHead(
        in_channels=8,
        tasks=[{"num_class": len(task), "class_names": list(task)} for task in HEAD.tasks],
        common_heads={name: (width, 2) for name, width in HEAD_MAPS.items()},
        share_conv_channel=8,
        bbox_coder={
            "type": "CenterPointBBoxCoder",
            "pc_range": [-8.0, -4.0],
            "out_size_factor": 4,
            "voxel_size": [0.125, 0.125],
            "code_size": 9,
        },
        separate_head={"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3},
        loss_cls={"type": "mmdet.GaussianFocalLoss", "reduction": "mean"},
        loss_bbox={"type": "mmdet.L1Loss", "reduction": "mean", "loss_weight": 0.25},
        train_cfg={
            "grid_size": [128, 64, 1],
            "voxel_size": [0.125, 0.125, 8],
            "point_cloud_range": [-8.0, -4.0, -5, 8, 4, 3],
            "out_size_factor": 4,
            "dense_reg": 1,
            "gaussian_overlap": 0.1,
            "max_objs": 500,
            "min_radius": 2,
            "code_weights": list(HEAD.code_weights),
        },
    )


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=g)
    boxes[:, 0] = boxes[:, 0] * 22 - 11  # a few are out of range
    boxes[:, 1] = boxes[:, 1] * 11 - 5.5
    # mmdet3d rounds towards 0 and so takes in boxes up to one cell before the range; ours does not.
    boxes[:, 0] = torch.where((boxes[:, 0] < -8) & (boxes[:, 0] > -8.5), -7.7, boxes[:, 0])
    boxes[:, 1] = torch.where((boxes[:, 1] < -4) & (boxes[:, 1] > -4.5), -3.7, boxes[:, 1])
    boxes[:, 3:6] = boxes[:, 3:6] * 8 + 0.3
    boxes[:, 6] = boxes[:, 6] * 12 - 6
    return boxes, torch.randint(0, 10, (count,), generator=g)


def test_targets_and_losses_agree_with_mmdet3d(theirs: Any) -> None:
    structures = pytest.importorskip("mmdet3d.structures")
    instances = pytest.importorskip("mmengine.structures")
    samples = [random_boxes(40, seed) for seed in range(3)]
    truth = [
        instances.InstanceData(bboxes_3d=structures.LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
        for boxes, labels in samples
    ]
    targets = head_targets(tuple(b for b, _ in samples), tuple(k for _, k in samples), GRID, HEAD)
    ours = valid_of(targets)
    assert 0 < len(ours.task) < len(targets.task)
    heatmaps, codes, cells, masks = theirs.get_targets(truth)
    torch.testing.assert_close(ours.heatmap, torch.cat(heatmaps, dim=1), atol=1e-6, rtol=0)
    for task in range(6):
        for sample in range(3):
            kept = masks[task][sample].bool()
            mine = (ours.task == task) & (ours.sample == sample)
            expected = {
                (int(c), *v.tolist()) for c, v in zip(cells[task][sample][kept], codes[task][sample][kept], strict=True)
            }
            found = [(int(c), *v.tolist()) for c, v in zip(ours.cell[mine], ours.codes[mine], strict=True)]
            assert len(found) == len(expected)
            torch.testing.assert_close(
                torch.tensor(sorted(found)), torch.tensor(sorted(expected)), atol=1e-4, rtol=1e-4
            )

    torch.manual_seed(0)
    logits = torch.randn(3, 10, 16, 32)
    maps = {name: torch.randn(3, 6, width, 16, 32) for name, width in HEAD_MAPS.items()}
    sizes = [len(task) for task in HEAD.tasks]
    leaves = [value.requires_grad_() for value in (logits, *maps.values())]
    predicted = tuple(
        [{"heatmap": channels.clone(), **{name: maps[name][:, task].clone() for name in HEAD_MAPS}}]
        for task, channels in enumerate(logits.split(sizes, dim=1))
    )
    losses = theirs.loss_by_feat(predicted, truth)
    of_heatmaps = sum(value for name, value in losses.items() if name.endswith("heatmap"))
    of_boxes = sum(value for name, value in losses.items() if name.endswith("bbox"))
    found, regressed = (
        heatmap_loss(logits, ours.heatmap, HEAD.tasks),
        0.25 * boxes_loss(maps, targets, HEAD.code_weights),
    )
    torch.testing.assert_close(found, of_heatmaps)
    torch.testing.assert_close(regressed, of_boxes)
    gradients = (torch.autograd.grad(loss, leaves) for loss in (found + regressed, of_heatmaps + of_boxes))
    for mine, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected_gradient, atol=1e-6, rtol=1e-4)
