"""fgd with every option against a reference in float64, cell by cell, from the README of the golden vectors."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.geometry.grid import BevGrid
from student.distill.adapters import FeatureLayer
from student.distill.cell_weights import weigh_cells
from student.distill.feature_stats import feature_stats
from student.distill.pairs import LayerPair, PairConfig
from student.distill.predictions import BatchPredictions, TeacherPredictions
from student.distill.terms.fgd import (
    FgdLoss,
    FgdTerm,
    attended_cells,
    channel_distance,
    selected_affinity,
    spatial_distance,
)

GRID = BevGrid(x_range_m=(-3.2, 9.6), y_range_m=(0.0, 8.0), cell_m=(0.8, 0.8))
HEIGHT, WIDTH = GRID.shape
BATCH, CHANNELS = 2, 5
BOXES = (
    torch.tensor(
        [
            [0.3, 2.1, 0, 4.1, 1.9, 1, 0.4, 0, 0],
            [1.1, 2.9, 0, 2.9, 2.2, 1, -1.1, 0, 0],
            [8.9, 7.5, 0, 1.9, 2.2, 1, 0.0, 0, 0],
        ]
    ),
    torch.tensor([[5.1, 4.1, 0, 3.3, 2.1, 1, 2.0, 0, 0]]),
)


class Scene:
    """One made-up batch."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.student = torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, generator=generator)
        self.teacher = torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, generator=generator).relu()
        self.heatmap = torch.rand(BATCH, 10, HEIGHT, WIDTH, generator=generator) ** 12
        self.logits = torch.randn(BATCH, 10, HEIGHT, WIDTH, generator=generator) * 2 - 4
        self.canvas = torch.rand(BATCH, 4 * HEIGHT, 4 * WIDTH, generator=generator) > 0.98

    def predictions(self, epoch: int = 0) -> BatchPredictions:
        padded = nn.utils.rnn.pad_sequence([boxes.double() for boxes in BOXES], batch_first=True)
        teacher = TeacherPredictions(heatmap=self.heatmap, canvas_mask=self.canvas)
        return BatchPredictions(
            boxes=padded,
            channels=torch.zeros(padded.shape[:2], dtype=torch.long),
            task_slices=(slice(0, 10),),
            grid=GRID,
            student_logits=self.logits,
            teachers=(teacher,),
            teacher_order=(tuple(range(10)),),
            epoch=epoch,
        )


def run(options: dict[str, Any], scene: Scene, epoch: int = 0) -> tuple[dict[str, float], FgdLoss]:
    config = FgdTerm.parse({"kind": "fgd", **options}, "test")
    layer = FeatureLayer(channels=CHANNELS, grid=GRID)
    pair = LayerPair(PairConfig(student="head", teacher="head"), layer, layer)
    term = FgdLoss(config, 0, pair)
    view = pair({"head": scene.student}, {"head": scene.teacher})
    losses = term(view, scene.predictions(epoch))
    return {name: value.item() for name, value in losses.items()}, term


def pointwise(kind: str, difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return {"mse": size**2, "l1": size, "smooth_l1": np.where(size < 1, size**2 / 2, size - 0.5)}[kind]


def covers(box: np.ndarray, longer: float = 0.0) -> np.ndarray:
    away = GRID.centers_m() - box[:2]
    ahead = away[..., 0] * math.cos(box[6]) + away[..., 1] * math.sin(box[6])
    left = away[..., 1] * math.cos(box[6]) - away[..., 0] * math.sin(box[6])
    return (np.abs(ahead) < (box[3] + longer) / 2) & (np.abs(left) < (box[4] + longer) / 2)


def radius_of(kind: str, h: float, w: float, scale: float) -> float:
    match kind:
        case "centerpoint1":
            return (h + w + math.sqrt((h + w) ** 2 - 4 * w * h * 0.9 / 1.1)) / 2
        case "centerpoint2":
            return (2 * (h + w) + math.sqrt(4 * (h + w) ** 2 - 16 * 0.9 * w * h)) / 2
        case "centerpoint3":
            return (-0.2 * (h + w) + math.sqrt((0.2 * (h + w)) ** 2 + 1.6 * 0.9 * w * h)) / 2
    return max(h, w) * scale


def stamps(boxes: np.ndarray, radius: Any) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussians' and the extended scales' maximum."""
    gauss, scale = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for box in boxes:
        w, h = box[3] / 0.8, box[4] / 0.8
        column, row = math.floor((box[0] + 3.2) / 0.8), math.floor(box[1] / 0.8)
        reach = max(2, int(radius(h, w)))
        for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
            if abs(y - row) <= reach and abs(x - column) <= reach:
                sigma = (2 * reach + 1) / 6
                gauss[y, x] = max(gauss[y, x], math.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2)))
                scale[y, x] = max(scale[y, x], 1 / math.ceil(h * w))
    return gauss, scale


def blobs(mask: np.ndarray) -> np.ndarray:
    """1 / the size of each cell's 4-connected blob."""
    scale = np.zeros(mask.shape)
    for start in zip(*np.nonzero(mask), strict=True):
        blob, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} - blob
            inside = [c for c in near if 0 <= c[0] < HEIGHT and 0 <= c[1] < WIDTH and mask[c]]
            blob.update(inside)
            edge.extend(inside)
        scale[start] = 1 / len(blob)
    return scale


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum() * values.size


def reference(config: FgdTerm, scene: Scene, kernel: np.ndarray, bias: float, epoch: int) -> dict[str, float]:
    """Every term of a batch, sample by sample."""
    total: dict[str, float] = {}
    student, teacher = scene.student.double().numpy(), scene.teacher.double().numpy()
    for sample in range(BATCH):
        terms = reference_sample(config, scene, sample, student[sample], teacher[sample], kernel, bias, epoch)
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + value / (1 if name == "affinity" else BATCH)
    return total


def reference_sample(
    config: FgdTerm,
    scene: Scene,
    sample: int,
    s: np.ndarray,
    t: np.ndarray,
    kernel: np.ndarray,
    bias: float,
    epoch: int,
) -> dict[str, float]:
    boxes = BOXES[sample].double().numpy()
    inside, fg_scale = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for box in boxes[::-1]:
        if config.context_weight:
            ring = covers(box, config.context_cells * 0.8)
            inside[ring] = config.context_weight
            fg_scale[ring] = math.sqrt(0.64 / (box[3] * box[4]))
    for box in boxes[::-1]:
        inside[covers(box)] = 1
        fg_scale[covers(box)] = math.sqrt(0.64 / (box[3] * box[4]))
    gauss, extended = stamps(boxes, lambda h, w: radius_of(config.radius, h, w, config.radius_scale))
    ratio = config.bg_weight / config.fg_weight
    fg = {
        "gt": inside,
        "gauss": gauss,
        "extended_binary": (gauss > 0) * 1.0,
        "gauss_plus_extended_binary": gauss + (gauss > 0),
        "gauss_plus_extended_binary_clamp": np.minimum(gauss + (gauss > 0), 1),
        "gauss_plus_binary_clamp": np.minimum(config.gauss_weight * gauss + (inside > 0), 1),
        "gauss_in_gt": inside * gauss,
        "negative_linear_gauss_in_gt": inside * (gauss + ratio * (1 - gauss)),
    }[config.foreground_mask]
    bg = (fg == 0) * 1.0 if config.background_mask == "logical_not" else 1 - fg

    truth, _ = stamps(boxes, lambda h, w: min(radius_of(f"centerpoint{n}", h, w, 1) for n in (1, 2, 3)))
    teacher_heat = scene.heatmap[sample].double().numpy().max(0)
    student_heat = scene.logits[sample].double().sigmoid().numpy().max(0)
    low = config.threshold if config.gt_threshold is None else config.gt_threshold
    of_teacher, of_student = teacher_heat > config.threshold, student_heat > config.threshold
    fp = (truth < low) * {
        "none": False,
        "teacher": of_teacher,
        "student": of_student,
        "teacher_selected_student": of_student & (teacher_heat < low),
        "teacher+teacher_selected_student": of_teacher | (of_student & (teacher_heat < low)),
    }[config.false_positives]
    fp = fp & (fg == 0) & (epoch >= config.fp_epoch)
    canvas = scene.canvas[sample].numpy().reshape(HEIGHT, 4, WIDTH, 4).any(axis=(1, 3))
    non_empty = canvas & (fg == 0) & ~fp & (config.non_empty_weight > 0)
    bg = bg * ~fp * ~non_empty
    asked = (config.false_positives != "none" and epoch >= config.fp_epoch) or config.non_empty_weight > 0
    taken = fg.sum() + fp.sum() + non_empty.sum() if asked else (inside > 0).sum()
    left = HEIGHT * WIDTH - taken
    rest = np.full((HEIGHT, WIDTH), 1 / left if left > 0 else 0.0)
    fg_part, bg_part = {
        "none": (np.ones_like(rest),) * 2,
        "combine_gt": (np.maximum(fg_scale, rest),) * 2,
        "separate_gt": (fg_scale, rest),
        "combine_extend": (np.maximum(extended, rest),) * 2,
        "separate_extend": (extended, rest),
        "bg_only": (rest, rest),
    }[config.scale_mask]

    attention = np.ones((HEIGHT, WIDTH))
    if config.spatial_attention != "none":
        attention = softmax(np.abs(t).mean(0) / config.spatial_temperature)
    if config.spatial_attention == "teacher_student":
        of_s = softmax(np.abs(s).mean(0) / config.spatial_temperature)
        attention = (attention + config.student_ratio * of_s) / (1 + config.student_ratio)
    channel = softmax(np.abs(t).mean((1, 2)) / config.channel_temperature)
    each = pointwise(config.feature_criterion, s - t)
    weighted = (each * channel[:, None, None]).sum(0)
    error = weighted if config.channel_attention else each.sum(0)
    terms = {
        "foreground": (error * fg * fg_part * attention).sum() * config.fg_weight,
        "background": (error * bg * bg_part * attention).sum() * config.bg_weight,
    }
    if config.channel_attention:
        means = pointwise(config.channel_criterion, s.mean((1, 2)) - t.mean((1, 2)))
        terms["channel"] = means.sum() * config.channel_weight
    if config.spatial_attention != "none":
        padded = np.pad(s.mean(0), 1)
        moved = sum(kernel[y, x] * padded[y : y + HEIGHT, x : x + WIDTH] for y in range(3) for x in range(3))
        difference = moved + bias - t.mean(0)
        terms["spatial"] = pointwise(config.spatial_criterion, difference).sum() * config.spatial_weight
    if config.false_positives != "none" and epoch >= config.fp_epoch:
        share = blobs(fp) if config.fp_scale == "region" else fp / max(fp.sum(), 1)
        terms["false_positive"] = (weighted * share * attention).sum() * config.fp_weight
    if config.non_empty_weight:
        share = non_empty / max(non_empty.sum(), 1)
        terms["non_empty"] = (weighted * share * attention).sum() * config.non_empty_weight
    if config.affinity_mode != "none":
        chosen = fg != 0
        if config.affinity_mode == "foreground+fp":
            chosen = chosen | fp
        if config.affinity_mode == "attention":
            if config.affinity_threshold is None:
                chosen = attention >= np.sort(attention.ravel())[-config.affinity_top_k]
            else:
                chosen = attention / attention.size > config.affinity_threshold
        a, b = s[:, chosen], t[:, chosen]
        terms["affinity"] = pointwise(config.affinity_criterion, a.T @ a - b.T @ b).mean() * config.affinity_weight
    return terms


ONE_BY_ONE = [
    *({"feature_criterion": kind} for kind in ("l1", "smooth_l1")),
    *({"channel_criterion": kind} for kind in ("mse", "smooth_l1")),
    *({"spatial_criterion": kind} for kind in ("mse", "smooth_l1")),
    *({"spatial_attention": kind} for kind in ("none", "teacher", "teacher_student")),
    {"channel_attention": False},
    {"spatial_attention": "teacher_student", "student_ratio": 0.3, "spatial_temperature": 0.2},
    {"channel_temperature": 0.1},
    *({"foreground_mask": kind} for kind in ("gauss", "extended_binary", "gauss_plus_extended_binary")),
    {"foreground_mask": "gauss_plus_extended_binary_clamp", "background_mask": "1minus"},
    {"foreground_mask": "gauss_plus_binary_clamp", "gauss_weight": 0.7, "background_mask": "1minus"},
    {"foreground_mask": "gauss_in_gt", "scale_mask": "separate_gt"},
    {"foreground_mask": "negative_linear_gauss_in_gt"},
    *({"foreground_mask": "gauss", "radius": kind} for kind in ("centerpoint2", "centerpoint3", "maxwh")),
    {"foreground_mask": "gauss", "radius": "maxwh", "radius_scale": 1.7},
    *({"scale_mask": kind} for kind in ("none", "separate_gt", "bg_only")),
    *({"scale_mask": kind, "foreground_mask": "gauss"} for kind in ("combine_extend", "separate_extend")),
    {"context_cells": 2.0, "context_weight": 0.4},
    {"context_cells": 2.0, "context_weight": 0.4, "foreground_mask": "gauss_in_gt"},
    *(
        {"false_positives": kind, "fp_weight": 0.3}
        for kind in ("teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student")
    ),
    {"false_positives": "student", "fp_weight": 0.3, "threshold": 0.3, "gt_threshold": 0.6},
    {"false_positives": "teacher", "fp_weight": 0.3, "fp_scale": "region"},
    {"false_positives": "teacher", "fp_weight": 0.3, "fp_epoch": 3},
    {"false_positives": "teacher", "fp_weight": 0.3, "fp_epoch": 4},
    {"false_positives": "teacher", "fp_weight": 0.3, "channel_attention": False},
    {"non_empty_weight": 0.2},
    {"non_empty_weight": 0.2, "false_positives": "teacher", "fp_weight": 0.3},
    {"non_empty_weight": 0.2, "foreground_mask": "gauss", "background_mask": "1minus"},
    {"affinity_mode": "foreground", "affinity_weight": 2.0},
    {"affinity_mode": "foreground+fp", "affinity_weight": 2.0, "false_positives": "student", "fp_weight": 0.1},
    {"affinity_mode": "attention", "affinity_weight": 2.0, "affinity_top_k": 20},
    {"affinity_mode": "attention", "affinity_weight": 2.0, "affinity_threshold": 0.008},
    *({"affinity_mode": "foreground", "affinity_weight": 2.0, "affinity_criterion": kind} for kind in ("l1", "mse")),
]
CHOICES: dict[str, tuple[Any, ...]] = {
    "feature_criterion": ("mse", "l1", "smooth_l1"),
    "spatial_attention": ("none", "teacher", "teacher_student"),
    "channel_attention": (True, False),
    "foreground_mask": ("gauss", "extended_binary", "gauss_plus_binary_clamp"),
    "background_mask": ("logical_not", "1minus"),
    "scale_mask": ("none", "combine_gt", "separate_gt", "combine_extend", "separate_extend", "bg_only"),
    "radius": ("centerpoint1", "centerpoint2", "centerpoint3", "maxwh"),
    "context_weight": (0.0, 0.5),
    "false_positives": ("none", "teacher", "student", "teacher+teacher_selected_student"),
    "fp_scale": ("average", "region"),
    "non_empty_weight": (0.0, 0.1),
    "affinity_mode": ("none", "foreground", "attention"),
}


def check(options: dict[str, Any], seed: int, epoch: int = 3) -> None:
    scene = Scene(seed)
    found, term = run(options, scene, epoch)
    kernel, bias = np.zeros((3, 3)), 0.0
    if term.spatial_adapter is not None:
        kernel = term.spatial_adapter.weight.detach().double().numpy()[0, 0]
        bias = term.spatial_adapter.bias.item()
    expected = reference(term.config, scene, kernel, bias, epoch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-7), (name, options)


@pytest.mark.parametrize("options", ONE_BY_ONE, ids=lambda options: "-".join(map(str, options.values())))
def test_each_option(options: dict[str, Any]) -> None:
    check(options, seed=0)


@pytest.mark.parametrize("seed", range(12))
def test_options_at_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
    if options["spatial_attention"] == "none" and options["affinity_mode"] == "attention":
        options["affinity_mode"] = "foreground"
    options["context_cells"] = 1.5 if options["context_weight"] else 0.0
    options["fp_weight"] = 0.2 if options["false_positives"] != "none" else 0.0
    options["affinity_weight"] = 0.5 if options["affinity_mode"] != "none" else 0.0
    check({**options, "affinity_top_k": 30}, seed)


def test_nothing_left_for_the_background() -> None:
    everywhere = torch.tensor([[[3.2, 4.0, 0, 40.0, 40.0, 1, 0, 0, 0]]], dtype=torch.float64)
    cells = weigh_cells(FgdTerm(kind="fgd"), everywhere, GRID)
    assert not cells.background.any()
    assert cells.foreground.isfinite().all()


def test_a_split_affinity_is_the_mean_of_its_groups() -> None:
    torch.manual_seed(0)
    options = {"affinity_mode": "foreground", "affinity_weight": 1.0, "affinity_split": 4}
    found, _ = run(options, Scene())
    whole, _ = run({**options, "affinity_split": 1}, Scene())
    assert 0 < found["affinity"] != whole["affinity"]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_channel_and_spatial_terms(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = (x.double().numpy() for x in pair)
    adapter = nn.Conv2d(1, 1, 3, padding=1)
    found = feature_stats(*pair)
    expected = np.abs(student.mean((2, 3)) - teacher.mean((2, 3))).sum() / 3
    assert channel_distance(found, "l1").item() == pytest.approx(expected, rel=1e-5)
    moved = adapter(pair[0].mean(1, keepdim=True))[:, 0].detach().double().numpy()
    expected = np.square(moved - teacher.mean(1)).sum() / 3
    assert spatial_distance(found, adapter, "mse").item() == pytest.approx(expected, rel=1e-5)


def test_selected_affinity_sums_samples_and_skips_those_without_cells() -> None:
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    selected = torch.zeros(2, 4, 5, dtype=torch.bool)
    selected[0, 1, 2:4] = selected[0, 3, 0] = True
    s, t = student[0][:, selected[0]].detach().numpy(), teacher[0][:, selected[0]].numpy()
    found = selected_affinity(student, teacher, selected)
    assert found.item() == pytest.approx(pointwise("smooth_l1", s.T @ s - t.T @ t).mean(), rel=1e-5)
    found.backward()
    assert not student.grad[1].any()


def test_attended_cells() -> None:
    attention = torch.tensor([[[0.5, 2.0], [1.5, 0.0]]])
    assert attended_cells(attention, top_k=2).tolist() == [[[False, True], [True, False]]]
    assert attended_cells(attention, top_k=9).all()
    assert attended_cells(attention, top_k=1, threshold=0.12).tolist() == [[[True, True], [True, False]]]
