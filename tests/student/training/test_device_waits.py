"""A training step on a GPU that is not there: which tensors are on it, and where Python waits for it."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec, CodecSpec, LayerSpec, TeacherIdentity
from cache.store.batch import TeacherBatch
from cache.store.codec import encode
from student.config.student import TASKS, HeadConfig, StudentConfig
from student.distill.head_maps import HEAD_MAPS
from student.distill.terms import TERMS
from student.models.center_head import CenterHead
from student.training.module import StudentModule
from tests.factories.detectors import NAMES, batch_of, small
from tests.factories.distill import make_spec
from tests.factories.fake_cuda import CUDA, bfloat16, fake_cuda, on_cuda

Place = tuple[str, str]

OF_A_STEP: dict[Place, str] = {
    ("student.training.module.StudentModule.training_step", "_to_copy"): (
        "once: a step whose loss is not finite must not reach the weights"
    ),
}
OF_OPTIONS: dict[Place, str] = {
    ("student.distill.terms.fgd.selected_affinity", "index"): (
        "fgd's affinity_mode: Gram matrices of the selected cells; that of all cells would take 1 GB a sample"
    ),
    ("student.distill.regions.region_scale", "_to_copy"): "fgd's fp_scale: region: scipy finds the regions on the CPU",
    ("student.distill.terms.non_local.NonLocal.forward", "index"): (
        "non_local of a warped teacher: its batch norm is over the valid cells alone"
    ),
    ("student.distill.terms.non_local.NonLocal.forward", "index_put_"): "the same",
}
"""Where Python may wait for the device, and why. Any other place fails, and so does one that no longer waits."""

GRID = small().grid
WIDER = BevGrid(x_range_m=(-9.6, 9.6), y_range_m=(-14.4, 14.4), cell_m=(1.2, 1.2))
COMPANDED = LayerSpec(name="head", channels=6, grid=WIDER, codec=CodecSpec(kind="signed", companding=0.5))
OTHERS = TeacherIdentity(name="t", weights_sha256="0", config_sha256="0", tasks=(*TASKS[::-1], ("animal",)))
SPECS = (
    make_spec({"head": (7, GRID), "backbone1": (5, GRID)}, head_maps=HEAD_MAPS),
    make_spec({"head": (6, WIDER)}).model_copy(
        update={"layers": (COMPANDED,), "teacher": OTHERS, "head_maps": HEAD_MAPS}
    ),
)
PAIRS = [
    {"student": "head", "teacher": "head", "student_adapter": "1x1conv"},
    {"student": "backbone1", "teacher": "backbone1", "student_adapter": {"kind": "upsample_3layer", "factor": 4}},
    {"student": "head", "teacher": "head", "student_adapter": "1x1conv", "cache": 1},
]
TERMS_OF_STEP: list[dict[str, Any]] = [
    {"kind": "all"},
    {"kind": "fitnet"},
    {"kind": "attention_transfer"},
    {"kind": "foreground_background"},
    {"kind": "linfengzhang", "pairs": ["head", "head@1"]},
    {"kind": "s2m2_ssd_feature"},
    {"kind": "affinity", "pairs": ["head", "head@1"], "split": 2},
    {"kind": "fgd", "spatial_attention": "teacher_student", "false_positives": "teacher", "non_empty_weight": 0.1},
    {"kind": "fgd", "name": "auto", "pairs": ["head"], "scale": "auto", "channel_attention": False},
    {"kind": "fgd", "name": "wide", "pairs": ["head"], "foreground_mask": "gauss", "scale_mask": "combine_extend"},
    {"kind": "fgd", "name": "ring", "pairs": ["head"], "context_cells": 2, "context_weight": 0.5},
    {
        "kind": "fgd",
        "name": "both",
        "pairs": ["head"],
        "false_positives": "teacher+teacher_selected_student",
        "fp_weight": 0.1,
    },
    {"kind": "s2m2_ssd_heatmap", "cache": 1},
    {"kind": "gauss_focal_heatmap"},
    {"kind": "heatmap_temperature"},
    {"kind": "heatmap_temperature", "name": "cells", "over": "cells", "cache": 1},
    {"kind": "heatmap_temperature", "name": "each", "over": "each"},
    {"kind": "unidistill_points"},
    {"kind": "tigbev_features"},
    {"kind": "bevdistill_feature"},
    {"kind": "box_response", "heatmap_weight": 0.1},
    {"kind": "box_response", "name": "peaks", "at": "teacher", "cache": 1},
    {"kind": "cross_head", "pairs": ["head"]},
]
DEPTH_TERMS: list[dict[str, Any]] = [{"kind": "tigbev_depth"}]
TERMS_THAT_WAIT: list[dict[str, Any]] = [
    {"kind": "fgd", "affinity_mode": "foreground", "affinity_weight": 0.1},
    {"kind": "fgd", "name": "attended", "affinity_mode": "attention", "affinity_weight": 0.1},
    {"kind": "fgd", "name": "region", "false_positives": "teacher", "fp_scale": "region"},
    {"kind": "non_local"},
]


def read(spec: CacheSpec) -> TeacherBatch:
    """Two samples of a store."""
    return TeacherBatch(
        tokens=("a", "b"),
        features={
            layer.name: encode(torch.rand(2, layer.channels, *layer.grid.shape), layer.codec) for layer in spec.layers
        },
        heatmap=torch.randint(0, 256, (2, len(spec.teacher.classes), *spec.heatmap_grid.shape), dtype=torch.uint8),
        canvas_mask=torch.rand(2, *spec.canvas_grid.shape) > 0.5,
        head_maps={
            name: torch.rand(2, len(spec.teacher.tasks), width, *spec.heatmap_grid.shape).half()
            for name, width in HEAD_MAPS.items()
        },
        view_matrix=torch.eye(4).repeat(2, 1, 1),
    )


def turned() -> Tensor:
    """By 0.3 rad, as a BEV augmentation does."""
    matrix = torch.eye(4)
    matrix[:2, :2] = torch.tensor([[0.9553, -0.2955], [0.2955, 0.9553]])
    return matrix.repeat(2, 1, 1)


def step(detector: str, terms: list[dict[str, Any]], warped: bool, half: bool) -> Counter[Place]:
    """The waits of a training step, up to its loss."""
    config = {"detector": small(detector).model_dump(), "distill": {"pairs": PAIRS, "terms": terms}}
    heads = {0: CenterHead(7, HeadConfig(shared_channels=4)).requires_grad_(False)}
    module = StudentModule(StudentConfig.model_validate(config), SPECS, heads)
    batch = batch_of(module.detector.times)
    assert batch.depth_m is not None
    batch = replace(
        batch,
        points_m=torch.rand(*batch.depth_m.shape, 3),
        teachers=tuple(read(spec) for spec in SPECS),
        to_teachers=(turned(),) * 2 if warped else (None,) * 2,
    )
    with fake_cuda() as waits:
        on_cuda(module)
        waits.found.clear()
        with bfloat16() if half else nullcontext():
            loss = module.training_step(batch.to(CUDA, non_blocking=True), 0)
        assert loss.device == CUDA
        return waits.found


@pytest.mark.parametrize(
    ("detector", "terms", "warped", "half"),
    [
        ("bevdet", TERMS_OF_STEP, False, False),
        ("bevdet4d", TERMS_OF_STEP[:1], True, False),
        ("bevdepth", TERMS_OF_STEP[:1], False, True),
        ("bevdepth4d", [*TERMS_OF_STEP, *DEPTH_TERMS], True, True),
    ],
    ids=NAMES,
)
def test_a_step_waits_once(detector: str, terms: list[dict[str, Any]], warped: bool, half: bool) -> None:
    assert step(detector, terms, warped, half) == dict.fromkeys(OF_A_STEP, 1)


def test_options_that_wait() -> None:
    assert set(step("bevdet", TERMS_THAT_WAIT, warped=True, half=False)) == {*OF_A_STEP, *OF_OPTIONS}


def test_every_term_is_among_them() -> None:
    assert {term["kind"] for term in [*TERMS_OF_STEP, *DEPTH_TERMS, *TERMS_THAT_WAIT]} == set(TERMS)
