import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, DataError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, Decoding
from student.config.student import SCALE_NMS, TASKS, HeadConfig
from student.distill.head_maps import HEAD_MAPS
from student.models.center_targets import head_targets
from student.models.decoding import Detections, decode, suppression_of_tasks

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(0.5, 0.5))  # 16 x 32
CAR, TRUCK, DIGGER, BARRIER = (CLASSES.index(n) for n in ("car", "truck", "construction_vehicle", "barrier"))


def blank(tasks: tuple[tuple[str, ...], ...] = TASKS) -> tuple[Tensor, dict[str, Tensor]]:
    """A heatmap of zeros, and maps of zeros with a heading along +x."""
    maps = {name: torch.zeros(1, len(tasks), width, 16, 32) for name, width in HEAD_MAPS.items()}
    maps["rot"][:, :, 1] = 1
    return torch.zeros(1, sum(map(len, tasks)), 16, 32), maps


def only(found: list[Detections]) -> Detections:
    (detections,) = found
    return detections


def test_an_unknown_class_is_refused() -> None:
    head = HeadConfig().model_copy(update={"tasks": (("car",), ("tram", "bus"))})  # a configuration refuses it itself
    with pytest.raises(ConfigError, match="got tram"):
        decode(*blank(head.tasks), GRID, head.tasks, Decoding())


def test_a_box_by_hand() -> None:
    heatmap, maps = blank()
    heatmap[0, TRUCK, 3, 18] = 0.7
    at = (0, 1, slice(None), 3, 18)
    maps["reg"][at] = torch.tensor([0.2, 0.3])
    maps["height"][at] = -0.25
    maps["dim"][at] = torch.tensor([4.0, 2.0, 1.5]).log()
    maps["rot"][at] = torch.tensor([3 * math.sin(2.5), 3 * math.cos(2.5)])
    maps["vel"][at] = torch.tensor([5.0, -1.0])
    found = only(decode(heatmap, maps, GRID, TASKS, Decoding()))
    torch.testing.assert_close(found.boxes, torch.tensor([[1.1, -2.35, -1.0, 4, 2, 1.5, 2.5, 5, -1]]))
    assert found.scores.tolist() == pytest.approx([0.7])
    assert found.labels.tolist() == [TRUCK]


def test_sizes_in_metres_where_the_head_says_so() -> None:
    heatmap, maps = blank()
    heatmap[0, CAR, 3, 18] = 0.7
    maps["dim"][:] = 2.5
    found = only(decode(heatmap, maps, GRID, TASKS, Decoding(log_dimensions=False)))
    assert found.boxes[0, 3:6].tolist() == [2.5, 2.5, 2.5]


def test_the_cache_s_types_are_taken_as_they_are() -> None:
    heatmap, maps = blank()
    heatmap[0, CAR, 3, 18] = 0.6
    stored = (heatmap * 255).round().to(torch.uint8)
    found = only(decode(stored.float() / 255, {n: m.half() for n, m in maps.items()}, GRID, TASKS, Decoding()))
    assert found.boxes.dtype == torch.float32
    assert found.scores.tolist() == pytest.approx([0.6], abs=1 / 510)


def test_low_scores_and_far_boxes_are_dropped() -> None:
    heatmap, maps = blank()
    heatmap[0, CAR, 0, 0], heatmap[0, CAR, 0, 10], heatmap[0, CAR, 0, 20], heatmap[0, TRUCK, 9, 9] = 0.9, 0.1, 0.11, 0.9
    maps["height"][0, 1] = 11.0
    found = only(decode(heatmap, maps, GRID, TASKS, Decoding()))
    assert found.scores.tolist() == pytest.approx([0.9, 0.11])


def test_at_most_so_many_candidates_a_task() -> None:
    heatmap, maps = blank()
    heatmap[0, CAR, 0] = torch.linspace(0.2, 0.9, 32)
    found = only(decode(heatmap, maps, GRID, TASKS, Decoding(max_per_frame=3, min_radius=(0.01,) * 6)))
    assert found.scores.tolist() == pytest.approx(heatmap[0, CAR, 0].flip(0)[:3].tolist())


def test_circles_are_compared_within_a_task_by_its_own_radius() -> None:
    heatmap, maps = blank()
    for label, column in [(CAR, 0), (CAR, 3), (CAR, 5), (BARRIER, 0), (BARRIER, 3)]:
        heatmap[0, label, 4, column] = 0.9 - 0.01 * column
    found = only(decode(heatmap, maps, GRID, TASKS, Decoding(nms_type="circle")))
    # Cars: radius 2 m = 4 cells. Barriers: 1 m = 2 cells.
    columns = ((found.boxes[:, 0] + 8) / 0.5).round().int().tolist()
    assert list(zip(found.labels.tolist(), columns, strict=True)) == [(CAR, 0), (CAR, 5), (BARRIER, 0), (BARRIER, 3)]


def test_scale_nms_compares_boxes_at_another_size() -> None:
    """Two 2 m boxes 1 m apart overlap by 1 / 3; at 0.4 times their size they do not touch."""
    heatmap, maps = blank((("car",), ("truck", "construction_vehicle")))
    tasks = (("car",), ("truck", "construction_vehicle"))
    maps["dim"][:] = math.log(2.0)
    for channel in range(3):
        heatmap[0, channel, 4, 4], heatmap[0, channel, 4 + channel, 6] = 0.9, 0.8
    heatmap[0, 1:, 4, 4] = 0
    heatmap[0, 1, 12, 4], heatmap[0, 1, 12, 6] = 0.9, 0.8
    heatmap[0, 1, 5, 6] = heatmap[0, 2, 6, 6] = 0
    heatmap[0, 2, 4, 20], heatmap[0, 2, 4, 22] = 0.9, 0.8
    alike = only(decode(heatmap, maps, GRID, tasks, Decoding(nms_type="rotate")))
    scaled = only(decode(heatmap, maps, GRID, tasks, Decoding(nms_type="rotate", nms_scale=(1.0, 0.4, 1.0))))
    assert alike.labels.tolist() == [CAR, TRUCK, DIGGER]
    assert sorted(scaled.labels.tolist()) == [CAR, TRUCK, TRUCK, DIGGER]
    torch.testing.assert_close(scaled.boxes[:, 3:6], torch.full((4, 3), 2.0))


def test_each_task_can_have_its_own_nms() -> None:
    rules = suppression_of_tasks(TASKS, SCALE_NMS)
    assert [rule.nms_type for rule in rules] == ["rotate", "rotate", "rotate", "circle", "rotate", "rotate"]
    assert [rule.threshold for rule in rules] == [0.2, 0.2, 0.2, 1.0, 0.2, 0.5]
    assert rules[0].scale.tolist() == pytest.approx([1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 4.5, 9.0])


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(nms_type=("circle",)), r"decoding.nms_type\); got 1 entries; expected 6"),
        (Decoding(min_radius=(1.0, 2.0)), r"decoding.min_radius\); got 2 entries; expected 6"),
        (Decoding(nms_type="rotate", nms_scale=(1.0, 2.0)), r"decoding.nms_scale\); got 2 entries; expected 10"),
    ],
)
def test_a_decoding_that_does_not_fit_the_tasks_is_refused(decoding: Decoding, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(*blank(), GRID, TASKS, decoding)


def test_rotated_nms_needs_no_radii() -> None:
    tasks = (("car",),)
    assert len(only(decode(*blank(tasks), GRID, tasks, Decoding(nms_type="rotate")))) == 0


def test_missing_and_unfitting_maps_are_refused() -> None:
    heatmap, maps = blank()
    with pytest.raises(MismatchError, match=r"\(vel\); got no such map; expected \(1, 6, 2, 16, 32\)"):
        decode(heatmap, {name: m for name, m in maps.items() if name != "vel"}, GRID, TASKS, Decoding())
    with pytest.raises(MismatchError, match=r"\(heatmap\); got \(1, 9, 16, 32\); expected \(1, 10, 16, 32\)"):
        decode(heatmap[:, 1:], maps, GRID, TASKS, Decoding())


def test_values_that_are_not_finite_are_refused() -> None:
    heatmap, maps = blank()
    heatmap[0, CAR, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"not finite; got 1 of 500 candidates"):
        decode(heatmap, maps, GRID, TASKS, Decoding())
    heatmap[0, CAR, 0, 0] = 0.9
    maps["dim"][0, 0, :, 0, 0] = 1000.0
    with pytest.raises(DataError, match="a score or a box that is not finite"):
        decode(heatmap, maps, GRID, TASKS, Decoding())


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=g)
    boxes[:, 0], boxes[:, 1] = boxes[:, 0] * 15.9 - 7.95, boxes[:, 1] * 7.9 - 3.95
    boxes[:, 3:6] = boxes[:, 3:6] * 4 + 0.3
    boxes[:, 6] = boxes[:, 6] * 6.2 - 3.1
    return boxes, torch.randint(0, 10, (count,), generator=g)


def test_targets_decode_to_their_boxes() -> None:
    boxes, labels = random_boxes(8, seed=3)
    targets = head_targets((boxes,), (labels,), GRID, HeadConfig())
    _, maps = blank()
    start = 0
    for name, width in HEAD_MAPS.items():
        flat = maps[name].flatten(-2)
        flat[targets.sample, targets.task, :, targets.cell] = targets.codes[:, start : start + width]
        start += width
    peaks = (targets.heatmap == 1).float()
    found = only(decode(peaks, maps, GRID, TASKS, Decoding(nms_type="circle", min_radius=(1e-6,) * 6)))
    order, expected = found.boxes[:, 0].argsort(), boxes[:, 0].argsort()
    assert found.labels[order].tolist() == labels[expected].tolist()
    torch.testing.assert_close(found.boxes[order], boxes[expected], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("nms_type", ["circle", "rotate"])
def test_decoding_agrees_with_mmdet3d(build_theirs: Any, nms_type: str) -> None:
    structures = pytest.importorskip("mmdet3d.structures")
    g = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 10, 16, 32, generator=g) * 2 - 3
    maps = {name: torch.randn(2, 6, width, 16, 32, generator=g) * 0.5 for name, width in HEAD_MAPS.items()}
    predicted = tuple(
        [{"heatmap": channels, **{name: maps[name][:, task] for name in HEAD_MAPS}}]
        for task, channels in enumerate(logits.split([len(task) for task in TASKS], dim=1))
    )
    meta = [{"box_type_3d": structures.LiDARInstance3DBoxes}] * 2
    expected = build_theirs(nms_type).predict_by_feat(predicted, meta)
    decoding = Decoding(
        nms_type=nms_type,
        max_per_frame=200,
        pre_max_size=150,
        post_center_range=(-7.0, -61.2, -10.0, 61.2, 61.2, 10.0),
    )
    for ours, theirs in zip(decode(logits.sigmoid(), maps, GRID, TASKS, decoding), expected, strict=True):
        assert len(ours) > 100
        assert ours.labels.tolist() == theirs.labels_3d.tolist()
        torch.testing.assert_close(ours.scores, theirs.scores_3d)
        torch.testing.assert_close(ours.boxes, theirs.bboxes_3d.tensor, atol=1e-5, rtol=1e-5)
