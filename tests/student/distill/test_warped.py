"""Teachers that know only a part of the student's ground: what they do not know leaves every term."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CodecSpec
from cache.store.codec import encode
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps
from tests.factories.distill import make_spec

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.8, 4.8), cell_m=(0.8, 0.8))
KNOWN = GRID.model_copy(update={"x_range_m": (-8.0, 1.6)})
COLUMNS = KNOWN.shape[1]
FGD: dict[str, Any] = {
    "spatial_attention": "teacher_student",
    "false_positives": "teacher+teacher_selected_student",
    "fp_weight": 0.1,
    "non_empty_weight": 0.1,
    "affinity_weight": 0.1,
    "affinity_mode": "foreground+fp",
    "threshold": 0.3,
}
TERMS: list[dict[str, Any]] = [
    {"kind": "fgd", **FGD},
    {"kind": "fgd", "name": "wide", "foreground_mask": "gauss", "scale_mask": "combine_extend", "fp_scale": "region"},
    {"kind": "fgd", "name": "attended", "affinity_mode": "attention", "affinity_weight": 1.0, "affinity_top_k": 9},
    {"kind": "foreground_background"},
    {"kind": "linfengzhang"},
    {"kind": "s2m2_ssd_feature"},
    {"kind": "s2m2_ssd_heatmap"},
    {"kind": "gauss_focal_heatmap"},
    {"kind": "heatmap_temperature"},
    {"kind": "heatmap_temperature", "name": "cells", "over": "cells"},
    {"kind": "heatmap_temperature", "name": "each", "over": "each"},
    {"kind": "attention_transfer"},
    {"kind": "all"},
    {"kind": "fitnet"},
    {"kind": "non_local"},
    {"kind": "affinity", "every": 1},
    {"kind": "unidistill_points"},
    {"kind": "tigbev_features", "enlarge_m": 0.2},
    {"kind": "bevdistill_feature"},
]
BOXES = (
    torch.tensor([[-4.3, 0.7, 0, 2.9, 1.7, 1, 0.4, 0, 0], [-1.1, -2.2, 0, 0.9, 0.9, 1, 1.4, 0, 0]]),
    torch.tensor([[-5.0, 1.1, 0, 2.1, 2.3, 1, 2.4, 0, 0]]),
)
LABELS = torch.tensor([0, 8]), torch.tensor([3])
HERE = torch.eye(4).expand(2, 4, 4)


class Batch:
    """A student on GRID, and a teacher on `grid`."""

    def __init__(self, grid: BevGrid = KNOWN) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

        height, width = grid.shape
        self.student, self.logits = random(4, *GRID.shape), 2 * random(10, *GRID.shape) - 5
        self.teacher = TeacherMaps(
            features={"head": random(6, height, width).relu()},
            heatmap=random(10, height, width).sigmoid() ** 6,
            canvas_mask=random(4 * height, 4 * width) > 1.6,
        )

    def terms(
        self, objective: DistillObjective, to_teacher: Tensor | None = None, student: Tensor | None = None
    ) -> dict[str, Tensor]:
        student = self.student if student is None else student
        return objective({"head": student}, self.logits, self.teacher, BOXES, LABELS, 0, [to_teacher])


def build(student: BevGrid, teacher: BevGrid, terms: list[dict[str, Any]] = TERMS, **pair: Any) -> DistillObjective:
    torch.manual_seed(0)
    pair = {"student": "head", "teacher": "head", "student_adapter": "1x1conv", **pair}
    config = DistillConfig.parse({"pairs": [pair], "terms": terms}, "test")
    spec, layer = make_spec({"head": (6, teacher)}), FeatureLayer(channels=4, grid=student)
    objective = DistillObjective(config, {"head": layer}, student, spec.teacher.tasks, [spec])
    for norm in objective.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)  # non-local blocks start as the identity, which would hide a fault
    return objective.double()


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


def test_cells_that_the_teacher_does_not_know_leave_all_terms_and_normalisers() -> None:
    """As if the ground ended there: every term is that of a student whose maps are cut off."""
    whole, cut = Batch(), Batch()
    cut.student, cut.logits = cut.student[..., :COLUMNS], cut.logits[..., :COLUMNS]
    found, expected = whole.terms(build(GRID, KNOWN)), cut.terms(build(KNOWN, KNOWN))
    assert values(found) == pytest.approx(values(expected), rel=1e-6)
    assert [name for name, value in found.items() if value.item() == 0] == []


def test_nothing_that_the_student_says_there_matters() -> None:
    one, objective = Batch(), build(GRID, KNOWN)
    expected = values(one.terms(objective))
    student = one.student.clone()
    student[..., COLUMNS:] *= -7.0
    one.logits[..., COLUMNS:] += 3.0
    student.requires_grad_()
    found = one.terms(objective, student=student)
    assert values(found) == pytest.approx(expected, rel=1e-9)
    sum(found.values()).backward()
    assert student.grad is not None
    assert not student.grad[..., COLUMNS:].any()
    assert student.grad[..., :COLUMNS].any()


def test_a_matrix_that_moves_nothing_changes_nothing() -> None:
    one, objective = Batch(GRID), build(GRID, GRID)
    assert values(one.terms(objective, HERE)) == pytest.approx(values(one.terms(objective)), rel=1e-6)


def test_a_student_and_a_teacher_turned_alike_agree_as_before() -> None:
    """The student sees the world turned by 180 degrees; the cached teacher does not, and is turned for it."""
    one, objective = Batch(GRID), build(GRID, GRID, [{"kind": "all"}, {"kind": "fgd", **FGD, "spatial_weight": 0.0}])
    boxes = tuple(box * torch.tensor([-1, -1, 1, 1, 1, 1, 1, 1, 1]) for box in BOXES)
    turned = one.student.flip(-1, -2), one.logits.flip(-1, -2)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).expand(2, 4, 4)
    found = objective({"head": turned[0]}, turned[1], one.teacher, boxes, LABELS, 0, [half_turn])
    assert values(found) == pytest.approx(values(one.terms(objective)), rel=1e-6)


def test_a_stored_teacher_is_warped_as_it_is_stored() -> None:
    one, objective = Batch(), build(GRID, KNOWN, [{"kind": "all"}, {"kind": "fgd", **FGD}])
    stored = encode(one.teacher.features["head"], CodecSpec())
    one.teacher = TeacherMaps(
        features={"head": stored.decode().double()},
        heatmap=one.teacher.heatmap,
        canvas_mask=one.teacher.canvas_mask,
    )
    expected = values(one.terms(objective))
    one.teacher = TeacherMaps(
        features={"head": stored}, heatmap=one.teacher.heatmap, canvas_mask=one.teacher.canvas_mask
    )
    assert values(one.terms(objective)) == pytest.approx(expected, rel=1e-6)


def test_adapters_see_a_warped_teacher_and_the_cells_that_count() -> None:
    pair = {
        "student_adapter": {"kind": "avgpool_1x1conv", "factor": 2},
        "teacher_adapter": {"kind": "avgpool", "factor": 2},
    }
    whole, cut = Batch(), Batch()
    cut.student, cut.logits = cut.student[..., :COLUMNS], cut.logits[..., :COLUMNS]
    terms = [term for term in TERMS if term["kind"] not in ("affinity", "linfengzhang")]
    found = whole.terms(build(GRID, KNOWN, terms, **pair))
    assert values(found) == pytest.approx(values(cut.terms(build(KNOWN, KNOWN, terms, **pair))), rel=1e-6)


def test_a_sample_of_which_the_teacher_knows_nothing_gives_zeros_and_not_nan() -> None:
    away = torch.eye(4).repeat(2, 1, 1)
    away[:, 0, 3] = 100.0
    one, objective = Batch(), build(GRID, KNOWN)
    student = one.student.clone().requires_grad_()
    found = one.terms(objective, away, student)
    assert values(found) == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)
    sum(found.values()).backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_a_teacher_of_another_frame_needs_its_matrix() -> None:
    ego = GRID.model_copy(update={"frame": "ego"})
    one, objective = Batch(GRID), build(GRID, ego, [{"kind": "all"}])
    with pytest.raises(MismatchError, match=r"different frames, and the calibration .*Pass `to_teacher`"):
        one.terms(objective)
    turned = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).expand(2, 4, 4)
    assert one.terms(objective, turned)["distill/all/head/feature"].item() > 0
