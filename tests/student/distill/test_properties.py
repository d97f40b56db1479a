"""What must hold for any boxes and features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache.geometry.grid import BevGrid
from student.distill.adapters import FeatureLayer
from student.distill.boxes import first_box, pad_boxes
from student.distill.config import DistillConfig
from student.distill.masks import box_masks, extension
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps
from tests.factories.distill import make_spec

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.8, 4.8), cell_m=(0.8, 0.8))
EASY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Off the cells' edges and centres, where a flip could turn a tie.
metres = st.integers(-900, 900).map(lambda centimetre: centimetre / 100 + 0.0037)
sides = st.integers(0, 600).map(lambda centimetre: centimetre / 100 + 0.0013)
boxes = st.builds(
    lambda x, y, dx, dy, yaw: [x, y, 0.0, dx, dy, 1.5, yaw, 0.0, 0.0], metres, metres, sides, sides, st.floats(-7, 7)
)
samples = st.lists(boxes, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64).reshape(-1, 9))
FGD: dict[str, Any] = {
    "spatial_attention": "teacher_student",
    "false_positives": "teacher+teacher_selected_student",
    "fp_weight": 0.1,
    "non_empty_weight": 0.1,
    "affinity_weight": 0.1,
    "affinity_mode": "foreground+fp",
    "threshold": 0.3,
}
TERMS = [
    {"kind": "fgd", **FGD},
    {"kind": "fgd", "name": "wide", "foreground_mask": "gauss", "scale_mask": "combine_extend", "fp_scale": "region"},
    {"kind": "foreground_background"},
    {"kind": "linfengzhang"},
    {"kind": "s2m2_ssd_feature"},
    {"kind": "s2m2_ssd_heatmap"},
    {"kind": "gauss_focal_heatmap"},
    {"kind": "heatmap_temperature"},
    {"kind": "attention_transfer"},
    {"kind": "all"},
    {"kind": "unidistill_points"},
    {"kind": "tigbev_features"},
    {"kind": "bevdistill_feature"},
]


class Maps:
    """Made-up features and heatmaps of some samples."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        height, width = GRID.shape
        self.student = torch.randn(count, 4, height, width, generator=generator, dtype=torch.float64)
        self.teacher = torch.randn(count, 6, height, width, generator=generator, dtype=torch.float64).relu()
        self.logits = 2 * torch.randn(count, 10, height, width, generator=generator, dtype=torch.float64) - 3
        self.heatmap = torch.rand(count, 10, height, width, generator=generator, dtype=torch.float64) ** 8
        self.canvas = torch.rand(count, 4 * height, 4 * width, generator=generator) > 0.95

    def change(self, how: Callable[[Tensor], Tensor]) -> "Maps":
        """The same with every map changed."""
        changed = Maps.__new__(Maps)
        changed.__dict__ = {name: how(value) for name, value in self.__dict__.items()}
        return changed


@pytest.fixture
def objective() -> DistillObjective:
    torch.manual_seed(0)
    config = DistillConfig.parse(
        {"pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}], "terms": TERMS}, "test"
    )
    spec = make_spec({"head": (6, GRID)})
    layer = FeatureLayer(channels=4, grid=GRID)
    objective = DistillObjective(config, {"head": layer}, GRID, spec.teacher.tasks, [spec]).double()
    for module in objective.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            # A kernel that a flip does not change.
            upright = module.weight.data + module.weight.data.flip(2)
            module.weight.data = upright + upright.flip(3)
    return objective


def run(objective: DistillObjective, maps: Maps, boxes: tuple[Tensor, ...]) -> dict[str, float]:
    teacher = TeacherMaps(features={"head": maps.teacher}, heatmap=maps.heatmap, canvas_mask=maps.canvas)
    labels = tuple(torch.arange(len(sample)) % 10 for sample in boxes)
    terms = objective({"head": maps.student}, maps.logits, teacher, boxes, labels, 0)
    return {name: value.item() for name, value in terms.items()}


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


@EASY
@given(st.lists(samples, min_size=3, max_size=3), st.permutations(range(3)), st.integers(0, 99))
def test_permuting_samples_permutes_masks(batch: list[Tensor], order: list[int], seed: int) -> None:
    padded = pad_boxes(tuple(batch))
    moved = pad_boxes(tuple(batch[index] for index in order))
    assert torch.equal(first_box(padded, GRID)[order], first_box(moved, GRID))
    before, after = box_masks(padded, GRID, 2.0, 0.5), box_masks(moved, GRID, 2.0, 0.5)
    assert torch.equal(before.foreground[order], after.foreground)
    assert torch.equal(before.fg_scale[order], after.fg_scale)
    assert torch.equal(extension(padded, GRID, "maxwh").scale[order], extension(moved, GRID, "maxwh").scale)


@EASY
@given(batch=st.lists(samples, min_size=3, max_size=3), order=st.permutations(range(3)), seed=st.integers(0, 99))
def test_permuting_samples_changes_no_term(
    objective: DistillObjective, batch: list[Tensor], order: list[int], seed: int
) -> None:
    maps = Maps(3, seed)
    moved = tuple(batch[index] for index in order)
    assert_same(run(objective, maps.change(lambda x: x[order]), moved), run(objective, maps, tuple(batch)))


@EASY
@given(batch=st.lists(samples, min_size=2, max_size=2), seed=st.integers(0, 99), axis=st.sampled_from(["x", "y"]))
def test_flips_change_no_term(objective: DistillObjective, batch: list[Tensor], seed: int, axis: str) -> None:
    def flip(sample: Tensor) -> Tensor:
        flipped = sample.clone()
        flipped[:, 0 if axis == "x" else 1] *= -1
        flipped[:, 6] = torch.pi - sample[:, 6] if axis == "x" else -sample[:, 6]
        return flipped

    # Boxes first by index stay first: their order is the same on both sides.
    maps = Maps(2, seed)
    expected = run(objective, maps, tuple(batch))
    flipped = maps.change(lambda x: x.flip(-1 if axis == "x" else -2))
    assert_same(run(objective, flipped, tuple(flip(sample) for sample in batch)), expected)


@EASY
@given(batch=st.lists(samples, min_size=2, max_size=2), seed=st.integers(0, 99))
def test_terms_are_finite_and_not_negative(objective: DistillObjective, batch: list[Tensor], seed: int) -> None:
    for name, value in run(objective, Maps(2, seed), tuple(batch)).items():
        assert 0 <= value < float("inf"), name


def test_no_boxes_and_no_answers_give_zeros(objective: DistillObjective) -> None:
    maps = Maps(2, 0)
    maps.student.requires_grad_()
    maps.logits = (maps.logits - 30).requires_grad_()
    maps.heatmap, maps.canvas = torch.zeros_like(maps.heatmap), torch.zeros_like(maps.canvas)
    empty = (torch.zeros(0, 9), torch.zeros(0, 9))
    teacher = TeacherMaps(features={"head": maps.teacher}, heatmap=maps.heatmap, canvas_mask=maps.canvas)
    labels = (torch.zeros(0, dtype=torch.long),) * 2
    terms = objective({"head": maps.student}, maps.logits, teacher, empty, labels, 0)
    nothing = {
        "distill/fgd/head/foreground",
        "distill/fgd/head/false_positive",
        "distill/fgd/head/non_empty",
        "distill/fgd/head/affinity",
        "distill/wide/head/foreground",
        "distill/foreground_background/head/foreground",
        *(f"distill/s2m2_ssd_feature/head/{part}" for part in ("tp", "fp", "fn")),
        *(f"distill/s2m2_ssd_heatmap/{part}" for part in ("tp", "fpfn")),
        *(f"distill/unidistill_points/head/{part}" for part in ("feature", "relation")),
        *(f"distill/tigbev_features/head/{part}" for part in ("keypoint", "channel")),
        "distill/bevdistill_feature/head/feature",
    }
    assert {name for name, value in terms.items() if value.item() == 0} == nothing
    sum(terms.values()).backward()
    assert maps.student.grad.isfinite().all()
    assert maps.logits.grad.isfinite().all()


@EASY
@given(
    batch=st.lists(samples, min_size=2, max_size=2),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_half_precision_stays_finite(
    objective: DistillObjective, batch: list[Tensor], seed: int, size: float, dtype: torch.dtype
) -> None:
    maps = Maps(2, seed).change(lambda x: x if x.dtype == torch.bool else x.to(dtype))
    maps.student, maps.heatmap = size * maps.student, maps.heatmap.float()
    with torch.autocast("cpu", dtype=dtype):
        found = run(objective.float(), maps, tuple(batch))
    objective.double()
    for name, value in found.items():
        assert 0 <= value < float("inf"), name


@pytest.mark.parametrize("kind", [*(term["kind"] for term in TERMS[2:]), "fgd", "fitnet", "non_local", "affinity"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    # fgd's attention takes no gradient; the student's share of it would make finite differences see one.
    more = {**FGD, "spatial_attention": "teacher", "affinity_mode": "foreground"} if kind == "fgd" else {}
    spec, layer = make_spec({"head": (6, GRID)}), FeatureLayer(channels=4, grid=GRID)
    pair = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}
    config = DistillConfig.parse({"pairs": [pair], "terms": [{"kind": kind, **more}]}, "test")
    torch.manual_seed(0)
    objective = DistillObjective(config, {"head": layer}, GRID, spec.teacher.tasks, [spec]).double().eval()
    maps = Maps(2, 1)
    teacher = TeacherMaps(features={"head": maps.teacher}, heatmap=maps.heatmap, canvas_mask=maps.canvas)
    boxes = (
        torch.tensor([[1.3, 0.7, 0, 4.1, 2.3, 1, 0.4, 0, 0]]),
        torch.tensor([[-4.3, 1.1, 0, 2.1, 2.3, 1, 2.4, 0, 0]]),
    )
    labels = (torch.tensor([0]), torch.tensor([8]))

    def total(student: Tensor, logits: Tensor) -> Tensor:
        terms = objective({"head": student}, logits, teacher, boxes, labels, 0)
        return torch.stack(list(terms.values())).sum()

    inputs = maps.student.requires_grad_(), maps.logits.requires_grad_()
    assert torch.autograd.gradcheck(total, inputs, fast_mode=True, atol=1e-4)
