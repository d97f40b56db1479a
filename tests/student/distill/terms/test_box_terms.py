"""Terms on boxes, in an objective: `box_response` and `cross_head`, and `foreground`."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, MismatchError
from student.config.student import TASKS
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.head_maps import HEAD_MAPS
from student.distill.objective import DistillObjective
from student.distill.regions import CLIP
from student.distill.terms.box_response import CODE_WEIGHTS
from tests.factories.box_terms import BOXES, GRID, LABELS, PAIR, TASK_OF_LABEL, Batch, Head, build, code
from tests.factories.distill import make_spec


def test_the_boxes_at_labels_by_loops() -> None:
    """Each task's mean of weighted absolute differences; the box beyond the grid is left out."""
    one = Batch()
    by_task: dict[int, list[float]] = {}
    for sample, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        for (x, y, *_), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            row, column = math.floor((y + 4.8) / 0.8), math.floor((x + 8) / 0.8)
            if column < GRID.shape[1]:
                task = TASK_OF_LABEL[label]
                pairs = zip(
                    CODE_WEIGHTS,
                    code(one.maps, sample, task, row, column),
                    code(one.teacher.head_maps, sample, task, row, column),
                    strict=True,
                )
                by_task.setdefault(task, []).append(sum(weight * abs(a - b) for weight, a, b in pairs))
    expected = sum(sum(errors) / len(errors) for errors in by_task.values())
    found = one.terms(build({"kind": "box_response", "box_weight": 2.0}))
    assert found["distill/box_response/boxes"].item() == pytest.approx(2 * expected, rel=1e-6)
    assert len(by_task) == 3


def test_the_boxes_at_the_teachers_peaks_by_loops() -> None:
    one = Batch()
    # Offsets that stay within the cell: the student is read in the cell of the teacher's box.
    one.teacher.head_maps["reg"].sigmoid_()
    errors: dict[int, list[float]] = {}
    for sample in range(2):
        for channel in range(10):
            task = next(
                t for t, slot in enumerate(build({"kind": "all"}).task_slices) if slot.start <= channel < slot.stop
            )
            heat = one.teacher.heatmap[sample, channel]
            for row in range(GRID.shape[0]):
                for column in range(GRID.shape[1]):
                    value = heat[row, column]
                    around = heat[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                    if value > 0.3 and value == around.max():
                        places = (sample, task, row, column)
                        pairs = zip(
                            CODE_WEIGHTS, code(one.maps, *places), code(one.teacher.head_maps, *places), strict=True
                        )
                        error = sum(weight * abs(a - b) for weight, a, b in pairs)
                        errors.setdefault(task, []).append(value.item() * error)
    expected = sum(sum(of_task) / len(of_task) for of_task in errors.values())
    term = {"kind": "box_response", "at": "teacher", "threshold": 0.3, "score_weight": True, "peaks": 200}
    assert one.terms(build(term))["distill/box_response/boxes"].item() == pytest.approx(expected, rel=1e-5)
    assert sum(map(len, errors.values())) > 10


def test_the_heatmaps_under_the_boxes_gaussians() -> None:
    one, objective = Batch(), build({"kind": "box_response", "box_weight": 0.0, "heatmap_weight": 3.0})
    weight = objective._predictions(one.logits, (), BOXES, LABELS, 0).truth_max
    student, teacher = (maps.amax(1).clamp(CLIP, 1 - CLIP) for maps in (one.logits.sigmoid(), one.teacher.heatmap))
    expected = 3 * ((student - teacher).abs() * weight).sum() / weight.sum()
    assert one.terms(objective)["distill/box_response/heatmap"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("at", ["boxes", "teacher"])
def test_a_world_turned_half_round_has_the_same_response(at: str) -> None:
    """The student's world is turned by 180 degrees; the cached teacher's boxes are turned for it."""
    one, objective = Batch(), build({"kind": "box_response", "at": at, "threshold": 0.3})
    one.teacher.head_maps["reg"].sigmoid_()
    expected = one.terms(objective)["distill/box_response/boxes"].item()
    maps = {name: value.flip(-1, -2) for name, value in one.maps.items()}
    maps["reg"] = 1 - maps["reg"]
    maps |= {"rot": -maps["rot"], "vel": -maps["vel"]}
    boxes = tuple(box * torch.tensor([-1, -1, 1, 1, 1, 1, 1, 1, 1]) for box in BOXES)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).expand(2, 4, 4)
    turned = objective(
        {"head": one.features}, one.logits, one.teacher, boxes, LABELS, 0, [half_turn], student_maps=maps
    )
    assert turned["distill/box_response/boxes"].item() == pytest.approx(expected, rel=1e-5)


def test_gradients_of_the_response_are_those_of_finite_differences() -> None:
    one = Batch()
    objective = build(
        {"kind": "box_response", "heatmap_weight": 1.0}, {"kind": "box_response", "name": "at", "at": "teacher"}
    )
    names = list(HEAD_MAPS)

    def total(logits: Tensor, *maps: Tensor) -> Tensor:
        one.logits, one.maps = logits, dict(zip(names, maps, strict=True))
        return torch.stack(list(one.terms(objective).values())).sum()

    inputs = one.logits.requires_grad_(), *(one.maps[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(total, inputs, fast_mode=True, atol=1e-4)


def test_the_crossed_head_by_its_definition() -> None:
    """The frozen head reads the adapted features; targets are the teacher's boxes."""
    head = Head().double()
    objective, one = build({"kind": "cross_head", "threshold": 0.1}, heads={0: head}).train(), Batch()
    assert not head.training and not any(p.requires_grad for p in head.parameters())
    one.features.requires_grad_()
    found = one.terms(objective)
    term = objective.config.terms[0]
    assert term.least_probability == pytest.approx(0.4453, abs=1e-4)
    teacher = objective._teacher_boxes(0, one.teacher, None)
    objects, theirs = teacher.peaks(100, term.least_probability)
    _, maps = head(objective.pairs[0].student_adapter(one.features))
    errors: dict[int, list[float]] = {}
    for sample, channel, target, box in (
        (b, objects.channels[b, p].item(), theirs[b, p], objects.boxes[b, p].tolist())
        for b in range(2)
        for p in range(100)
        if objects.scores[b, p] > 0
    ):
        row, column = math.floor((box[1] + 4.8) / 0.8), math.floor((box[0] + 8) / 0.8)
        if 0 <= row < GRID.shape[0] and 0 <= column < GRID.shape[1]:
            task = teacher.task_of_channel[channel].item()
            ours = code(maps, sample, task, row, column)
            ours[0], ours[1] = ours[0] + column, ours[1] + row
            pairs = zip(CODE_WEIGHTS, ours, target.tolist(), strict=True)
            errors.setdefault(task, []).append(sum(weight * abs(a - b) for weight, a, b in pairs))
    expected = 0.25 * sum(sum(of_task) / len(of_task) for of_task in errors.values())
    assert found["distill/cross_head/head/boxes"].item() == pytest.approx(expected, rel=1e-5)
    assert found["distill/cross_head/head/heatmap"] > 0
    sum(found.values()).backward()
    assert one.features.grad is not None and one.features.grad.isfinite().all() and one.features.grad.any()


def test_the_teachers_boxes_instead_of_labels() -> None:
    terms = [{"kind": "fgd"}, {"kind": "unidistill_points"}, {"kind": "box_response"}]
    one = Batch()
    of_labels, of_teacher = one.terms(build(*terms)), one.terms(build(*terms, foreground="teacher"))
    assert of_labels.keys() == of_teacher.keys()
    assert all(
        of_labels[name].item() != of_teacher[name].item()
        for name in of_labels
        if "spatial" not in name and "channel" not in name
    )
    # Labels say nothing then.
    nowhere = tuple(box[:0] for box in BOXES), tuple(label[:0] for label in LABELS)
    objective = build(*terms, foreground="teacher")
    blind = objective({"head": one.features}, one.logits, one.teacher, *nowhere, 0, student_maps=one.maps)
    assert {n: v.item() for n, v in blind.items()} == {n: v.item() for n, v in of_teacher.items()}


def test_labels_where_there_are_some_and_the_teacher_elsewhere() -> None:
    """Without a label in sample 1 its objects are the teacher's, in sample 0 they are the labels'."""
    one, objective = Batch(), build({"kind": "fgd"}, foreground="boxes_or_teacher")
    boxes = {0: objective._teacher_boxes(0, one.teacher, None)}
    mixed = objective._objects(BOXES, LABELS, boxes, (True, False))
    teacher = boxes[0].peaks(100, 0.3)[0]
    assert mixed.boxes[0, :2].tolist() == BOXES[0].double().tolist()
    assert not mixed.boxes[0, 2:].any() and not mixed.boxes[1, :2].any()
    assert torch.equal(mixed.boxes[1, 2:], teacher.boxes[1])
    both = objective._objects(BOXES, LABELS, boxes, None)
    assert both.boxes.shape == (2, 2, 9)
    assert one.terms(objective, labelled=(True, False))["distill/fgd/head/foreground"] > 0


def test_what_is_refused() -> None:
    one = Batch()
    with pytest.raises(ConfigError, match=r"a sample without labels .*got boxes, with 1 of 2 .*boxes_or_teacher"):
        one.terms(build({"kind": "fgd"}), labelled=(True, False))
    spec = make_spec({"head": (6, GRID)})
    layers = {"head": FeatureLayer(channels=4, grid=GRID)}
    for config in ({"terms": [{"kind": "box_response"}]}, {"terms": [{"kind": "all"}], "foreground": "teacher"}):
        parsed = DistillConfig.parse({"pairs": [PAIR], **config}, "test")
        with pytest.raises(ConfigError, match=r"keeps no maps of a centre head .*got no head maps; expected reg \(2\)"):
            DistillObjective(parsed, layers, GRID, TASKS, [spec])
    with pytest.raises(ConfigError, match="cross_head runs the teacher's head, and the objective has none"):
        build({"kind": "cross_head"})
    with pytest.raises(
        MismatchError, match=r"its head's maps are missing \(distill.terms, box_response\); got no maps"
    ):
        one.terms(build({"kind": "box_response"}), student_maps=None)
    one.teacher = replace(one.teacher, head_maps={})
    with pytest.raises(MismatchError, match=r"its batch lacks head maps \(cache 0\); got no maps.*head_maps=True"):
        one.terms(build({"kind": "box_response"}))
