"""The fifteen golden cases, through the whole objective: every term, and the gradient where there is one."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec
from student.distill.adapters import FeatureLayer
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig
from student.distill.gaussians import draw_heatmaps
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps
from tests.factories.distill import make_spec
from tests.factories.goldens import GOLDENS, term_settings

CASES = {case["name"]: case for case in json.loads((GOLDENS / "manifest.json").read_text())}
GRID = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8))
PARTS = {
    "kd_feat_loss": "feature",
    "kd_fg_feat_loss": "foreground",
    "kd_bg_feat_loss": "background",
    "kd_channel_loss": "channel",
    "kd_spatial_loss": "spatial",
    "kd_fp_bg_feat_loss": "false_positive",
    "kd_non_empty_bg_feat_loss": "non_empty",
    "kd_affinity_loss": "affinity",
    "kd_nonlocal_loss": "relation",
    "s2m2_ssd_feature_kd_tp_loss": "tp",
    "s2m2_ssd_feature_kd_fp_loss": "fp",
    "s2m2_ssd_feature_kd_fn_loss": "fn",
    "s2m2_ssd_heatmap_kd_loss": "tp",
} | {f"task{task}_kd_heatmap_loss": f"task{task}" for task in range(6)}


def _objective(case: dict[str, Any], arrays: dict[str, Tensor], spec: CacheSpec) -> DistillObjective:
    kind = case["distill_type"]
    pair = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}
    config = DistillConfig.parse(
        {"pairs": [pair], "terms": [{"kind": kind, **term_settings(kind, case["params"])}]}, "golden"
    )
    objective = DistillObjective(
        config, {"head": FeatureLayer(channels=8, grid=GRID)}, GRID, spec.teacher.tasks, [spec]
    )
    _load(objective.pairs[0].student_adapter, arrays, "adapter")
    for module in objective.terms[0]:
        _load(getattr(module, "spatial_adapter", None), arrays, "spatial_adapter")
        _load(getattr(module, "channel_adapter", None), arrays, "linear")
        if kind == "non_local":
            _load_non_local(module.student, arrays, "student_non_local")
            _load_non_local(module.teacher, arrays, "teacher_non_local")
    return objective.eval()


def _load(module: torch.nn.Module | None, arrays: dict[str, Tensor], name: str) -> None:
    if module is not None:
        module.load_state_dict({part: arrays[f"{name}_{part}"] for part in ("weight", "bias")})


def _load_non_local(module: torch.nn.Module, arrays: dict[str, Tensor], name: str) -> None:
    ours = {"W.0": "out", "W.1": "norm"}
    state = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
    renamed = {}
    for key, value in state.items():
        layer, _, part = key.rpartition(".")
        renamed[f"{ours.get(layer, layer)}.{part}"] = value
    module.load_state_dict(renamed)


def _run(case: dict[str, Any], arrays: dict[str, Tensor], spec: CacheSpec) -> tuple[dict[str, Tensor], Tensor]:
    student = arrays["student_feat"].clone().requires_grad_()
    teacher = TeacherMaps(
        features={"head": arrays["teacher_feat"]},
        heatmap=torch.cat([arrays[f"teacher_heatmap_logit{task}"] for task in range(6)], dim=1).sigmoid(),
        canvas_mask=arrays["canvas_mask"][:, 0] > 0,
    )
    student_logits = torch.cat([arrays[f"student_heatmap_prob{task}"] for task in range(6)], dim=1).logit()
    boxes, labels = ((arrays[f"{name}0"], arrays[f"{name}1"]) for name in ("boxes", "labels"))
    objective = _objective(case, arrays, spec)
    return objective({"head": student}, student_logits, teacher, boxes, labels, case["epoch"]), student


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = CASES[name]
    with np.load(GOLDENS / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    terms, student = _run(case, arrays, make_spec({"head": (12, GRID)}))
    found = {key.split("/")[-1]: value for key, value in terms.items()}
    expected = {PARTS[key]: value for key, value in case["losses"].items()}
    if case["distill_type"] == "s2m2_ssd_heatmap":
        assert found.pop("fpfn").item() == 0
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert found[part].item() == pytest.approx(value, rel=1e-4), part
    if "grad_student_feat" in arrays:
        sum(found.values()).backward()
        target = arrays["grad_student_feat"]
        assert (student.grad - target).abs().max() <= 1e-4 * target.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_ground_truth_heatmaps_are_the_golden_ones(name: str) -> None:
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        boxes = pad_boxes((torch.from_numpy(arrays["boxes0"]), torch.from_numpy(arrays["boxes1"])))
        labels = pad_sequence([torch.from_numpy(arrays[f"labels{sample}"]) for sample in range(2)], batch_first=True)
        expected = np.concatenate([arrays[f"gt_heatmap{task}"] for task in range(6)], axis=1)
    np.testing.assert_allclose(draw_heatmaps(boxes, labels, 10, GRID).numpy(), expected, atol=1e-6)
