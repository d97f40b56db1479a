"""`scale: auto`: the factors in numbers, and the same losses for teachers of several sizes."""

import math

import pytest
import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from student.distill.adapters import FeatureLayer
from student.distill.auto_scale import AutoScale
from student.distill.feature_stats import feature_stats
from student.distill.pairs import LayerPair, PairConfig
from student.distill.predictions import BatchPredictions, TeacherPredictions
from student.distill.terms.fgd import FgdLoss, FgdTerm

GRID = BevGrid(x_range_m=(-6.4, 6.4), y_range_m=(-6.4, 6.4), cell_m=(0.8, 0.8))
BOX = torch.tensor([[[0.0, 0.0, 0.0, 3.2, 3.2, 1.5, 0.0, 0.0, 0.0]]], dtype=torch.float64)
SETTINGS = {
    "kind": "fgd",
    "channel_attention": False,
    "channel_weight": 0,
    "spatial_attention": "teacher_student",
    "false_positives": "teacher",
    "fp_weight": 0.1,
}


def losses(student: Tensor, teacher: Tensor, grid: BevGrid = GRID, scale: str = "auto") -> dict[str, float]:
    config = FgdTerm.parse(SETTINGS | {"scale": scale}, "test")
    layer = FeatureLayer(channels=student.shape[1], grid=grid)
    pair = LayerPair(PairConfig(student="head", teacher="head"), layer, layer)
    heatmap = torch.zeros(1, 1, *grid.shape)
    heatmap[..., : grid.shape[0] // 4, :] = 0.5
    predictions = BatchPredictions(
        boxes=BOX,
        channels=torch.zeros(1, 1, dtype=torch.long),
        task_slices=(slice(0, 1),),
        grid=grid,
        student_logits=torch.zeros_like(heatmap),
        teachers=(TeacherPredictions(heatmap=heatmap, canvas_mask=heatmap[:, 0] > 0),),
        teacher_order=((0,),),
        epoch=0,
    )
    term = FgdLoss(config, 0, pair)
    adapter = term.spatial_adapter
    assert adapter is not None
    for parameter in adapter.parameters():  # the identity: of the 3 x 3 taps the middle one
        nn.init.zeros_(parameter)
        if parameter.dim() == 4:
            parameter.data[0, 0, 1, 1] = 1
    found = term(pair({"head": student}, {"head": teacher}), predictions)
    return {name: value.item() for name, value in found.items()}


def maps(channels: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1, channels, *GRID.shape, generator=generator).relu()
    return student, teacher


def test_factors_of_a_teacher_of_half_the_reference() -> None:
    teacher = torch.full((1, 192, 32, 32), 0.5 / math.sqrt(2 * math.pi))
    scale = AutoScale.of(feature_stats(torch.zeros_like(teacher), teacher), (0.4, 0.4))
    assert scale.features.item() == pytest.approx(2, rel=1e-5)
    assert scale.by_channels("mse").item() == pytest.approx(2 * 4, rel=1e-5)
    assert scale.by_channels("l1").item() == pytest.approx(2 * 2, rel=1e-5)
    assert scale.by_cells("l1").item() == pytest.approx(2 * 16, rel=1e-5)
    assert scale.foreground == pytest.approx(0.5)


def test_invalid_cells_do_not_count() -> None:
    teacher = torch.full((2, 384, 4, 4), 1.0)
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[:, :2] = True
    teacher = teacher * valid[:, None]
    scale = AutoScale.of(feature_stats(teacher, teacher, valid_mask=valid), (0.8, 0.8))
    assert scale.activation.item() == pytest.approx(1)
    assert scale.cells.item() == 8


def test_a_teacher_of_zeros_is_not_scaled() -> None:
    teacher = torch.zeros(1, 384, 4, 4)
    assert AutoScale.of(feature_stats(teacher, teacher), (0.8, 0.8)).by_channels("mse").item() == 1


@pytest.mark.parametrize(("copies", "strength"), [(4, 1.0), (1, 3.0), (2, 0.1)])
def test_teachers_of_other_channels_and_activation_have_the_same_losses(copies: int, strength: float) -> None:
    student, teacher = maps()
    larger = [strength * features.repeat(1, copies, 1, 1) for features in (student, teacher)]
    expected = losses(student, teacher)
    assert losses(*larger) == pytest.approx(expected, rel=1e-4)
    assert losses(*larger, scale="none") != pytest.approx(losses(student, teacher, scale="none"), rel=0.2)
    assert min(expected.values()) > 0


def test_teachers_of_other_cells_have_the_same_losses() -> None:
    fine = BevGrid(x_range_m=GRID.x_range_m, y_range_m=GRID.y_range_m, cell_m=(0.4, 0.4))
    student, teacher = maps()
    split = [features.repeat_interleave(2, 2).repeat_interleave(2, 3) for features in (student, teacher)]
    assert losses(*split, grid=fine) == pytest.approx(losses(student, teacher), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_attention": True}, "scale auto has no channel attention"),
        ({"affinity_mode": "foreground", "affinity_weight": 1.0}, "scale auto is not defined for Gram matrices"),
    ],
)
def test_what_auto_does_not_go_with(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FgdTerm.parse(SETTINGS | {"scale": "auto"} | changes, "test")
