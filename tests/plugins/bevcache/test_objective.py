"""The plug-in's objective equals `student.distill`: terms and gradients, on the golden cases and on random ones."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from bevcache.objective import DistillObjective, read_aligned, tapped
from bevcache.reader import BevCacheError, Grid, TeacherStore
from torch import Tensor, nn

from cache.geometry.grid import BevGrid
from cache.geometry.views import PUBLIC_AUGMENT, bev_matrix
from cache.spec import CLASSES, CacheSpec, CodecSpec
from cache.store.codec import encode
from student.distill import DistillConfig, FeatureLayer, TeacherMaps
from student.distill import DistillObjective as ProductObjective
from student.distill import to_teacher as product_to_teacher
from tests.factories.distill import make_spec, random_boxes
from tests.factories.goldens import GOLDENS, term_settings
from tests.plugins.bevcache.old_python import require_equal, run_case

GOLDEN_CASES = {case["name"]: case for case in json.loads((GOLDENS / "manifest.json").read_text())}
PARTS = {
    "kd_fg_feat_loss": "foreground",
    "kd_bg_feat_loss": "background",
    "kd_channel_loss": "channel",
    "kd_spatial_loss": "spatial",
    "kd_fp_bg_feat_loss": "false_positive",
    "kd_non_empty_bg_feat_loss": "non_empty",
}
COVERED = ("fgd_article_config", "fgd_paper_recipe", "fgd_student_fp", "fgd_non_empty")
GOLDEN_GRID = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8))
UNKNOWN_HERE = {"affinity_weight", "affinity_mode", "radius"}


def plain(grid: BevGrid) -> Grid:
    return Grid(grid.x_range_m, grid.y_range_m, grid.cell_m, grid.frame, grid.axes)


def golden_case(name: str) -> dict[str, Any]:
    """A golden case in the form of `make_case`; what it expects are the public code's numbers."""
    case = GOLDEN_CASES[name]
    with np.load(GOLDENS / f"{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    spec = make_spec({"head": (12, GOLDEN_GRID)})
    settings = term_settings("fgd", case["params"])
    term = {key: value for key, value in settings.items() if key not in UNKNOWN_HERE}
    state = {f"pairs.0.student_adapter.{part}": arrays[f"adapter_{part}"] for part in ("weight", "bias")}
    spatial = {f"terms.0.0.spatial_adapter.{part}": arrays[f"spatial_adapter_{part}"] for part in ("weight", "bias")}
    teacher = {
        "features/head": arrays["teacher_feat"],
        "heatmap": torch.cat([arrays[f"teacher_heatmap_logit{task}"] for task in range(6)], dim=1).sigmoid(),
        "canvas_mask": arrays["canvas_mask"][:, 0] > 0,
    }
    pair = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}
    return {
        "config": {"pairs": [pair], "terms": [{"kind": "fgd", **term}]},
        "layers": {"head": (8, plain(GOLDEN_GRID))},
        "heatmap_grid": plain(GOLDEN_GRID),
        "classes": list(CLASSES),
        "specs": [spec.model_dump(mode="json")],
        "state": state | spatial,
        "train": False,
        "features": {"head": arrays["student_feat"]},
        "logits": torch.cat([arrays[f"student_heatmap_prob{task}"] for task in range(6)], dim=1).logit(),
        "teachers": [teacher],
        "boxes": [arrays["boxes0"], arrays["boxes1"]],
        "labels": [arrays["labels0"], arrays["labels1"]],
        "epoch": case["epoch"],
        "gradients": {"head": arrays["grad_student_feat"]},
    }


def product_result(case: dict[str, Any], labels: list[Tensor], specs: list[CacheSpec], grids: Any) -> dict[str, Any]:
    """A case with the terms and gradients of `student.distill`, and its weights. Labels: indices into CLASSES."""
    config = DistillConfig.parse(case["config"], "case")
    layers = {name: FeatureLayer(channels=case["layers"][name][0], grid=grid) for name, grid in grids.items()}
    product = ProductObjective(
        config, layers, grids["head"], tuple((name,) for name in case["classes"]), specs
    ).double()
    state = {name: tensor.clone() for name, tensor in product.state_dict().items()}
    features = {name: maps.clone().requires_grad_() for name, maps in case["features"].items()}
    teachers = [
        TeacherMaps(
            features={layer.name: teacher[f"features/{layer.name}"] for layer in spec.layers},
            heatmap=teacher["heatmap"],
            canvas_mask=teacher["canvas_mask"],
        )
        for teacher, spec in zip(case["teachers"], specs, strict=True)
    ]
    matrices = [teacher.get("to_teacher") for teacher in case["teachers"]]
    boxes = tuple(case["boxes"])
    terms = product(features, case["logits"], teachers, boxes, tuple(labels), case["epoch"], matrices)
    sum(terms.values()).backward()
    wanted = {**features, **dict(product.named_parameters())}
    gradients = {name: tensor.grad for name, tensor in wanted.items() if tensor.grad is not None}
    values = {name: value.detach() for name, value in terms.items()}
    return case | {"state": state, "terms": values, "gradients": gradients}


def make_case(seed: int) -> dict[str, Any]:
    """A random configuration, student, teachers, augmentation and boxes, and what `student.distill` makes of them."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def maps(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    frame = rng.choice(["lidar", "lidar", "ego"])
    grid = BevGrid(x_range_m=(-6.4, 19.2), y_range_m=(0.0, 12.8), cell_m=(0.8, 0.8), frame=frame)
    grids = {"head": grid, "backbone1": grid.coarser(4)}
    moved = frame == "ego" or rng.random() < 0.7
    elsewhere = BevGrid(x_range_m=(-12.0, 24.0), y_range_m=(-12.0, 15.0), cell_m=(0.6, 0.6))
    turned = elsewhere.model_copy(update={"axes": "xy"})
    theirs = [rng.choice([elsewhere, turned, grid.model_copy(update={"frame": "lidar"})] if moved else [grid])]
    theirs.append(rng.choice([elsewhere, grid.resized((32, 64))]) if frame == "lidar" else elsewhere)
    specs = [make_spec({"head": (7, theirs[0]), "backbone1": (5, theirs[0])}), make_spec({"head": (6, theirs[1])})]
    fine = theirs[1] != elsewhere
    pairs = [
        {"student": "head", "teacher": "head", "student_adapter": rng.choice(["1x1conv", "3x3conv", "mlp", "3layer"])},
        {
            "student": "backbone1",
            "teacher": "backbone1",
            "student_adapter": {"kind": rng.choice(["upsample_3layer", "upsample_1x1conv"]), "factor": 4},
        },
        {
            "student": "head",
            "teacher": "head",
            "cache": 1,
            "student_adapter": {"kind": "upsample_2layer", "factor": 2} if fine else "2layer",
        },
    ]
    pairs = pairs[: rng.randint(1, 3)]
    spatial = ["none", "teacher", "teacher_student"]
    wrong = ["none", "teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student"]
    term = {
        "kind": "fgd",
        "fg_weight": [rng.uniform(1e-3, 1e-2) for _ in pairs],
        "bg_weight": 4e-2,
        "fp_weight": 6e-2,
        "non_empty_weight": rng.choice([0.0, 0.02]),
        "scale_mask": rng.choice(["combine_gt", "separate_gt", "bg_only", "none"]),
        "feature_criterion": rng.choice(["mse", "l1", "smooth_l1"]),
        "channel_criterion": rng.choice(["mse", "l1"]),
        "spatial_attention": [rng.choice(spatial) for _ in pairs],
        "channel_attention": rng.random() < 0.5,
        "false_positives": [rng.choice(wrong[1:]) for _ in pairs],
        "fp_epoch": rng.choice([0, 3]),
        "threshold": rng.choice([0.1, 0.3]),
        "gt_threshold": rng.choice([None, 0.2]),
        "student_ratio": rng.choice([1.0, 0.3]),
    }
    second = {"kind": "fgd", "name": "again", "pairs": ["head"], "spatial_attention": "teacher_student"}
    config = {"pairs": pairs, "terms": [term, second], "multi_scale_epoch": rng.choice([0, 2])}
    classes = list(CLASSES) if rng.random() < 0.5 else ["pedestrian", "car", "bus"]
    augmentation = torch.from_numpy(
        np.stack([bev_matrix(PUBLIC_AUGMENT, np.random.default_rng(seed + n)) for n in (0, 1)])
    )
    to_ego = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    to_ego[:, :2, :2], to_ego[:, 0, 3] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), 0.94
    view = torch.diag(torch.tensor([1.0, rng.choice([1.0, -1.0]), 1.0, 1.0])).repeat(2, 1, 1)
    teachers = []
    for spec in specs:
        teacher = {}
        for layer in spec.layers:
            teacher[f"features/{layer.name}"] = maps(layer.channels, *layer.grid.shape).relu()
        heatmap = maps(10, *spec.heatmap_grid.shape).sigmoid() ** 4 * 255
        teacher |= {"heatmap": heatmap.to(torch.uint8), "canvas_mask": maps(*spec.canvas_grid.shape) > 1.3}
        if moved:
            teacher["to_teacher"] = view.double() @ torch.linalg.inv(
                augmentation @ to_ego if frame == "ego" else augmentation
            )
        teachers.append(teacher)
    case = {
        "config": config,
        "layers": {name: (4 if name == "head" else 6, plain(grids[name])) for name in grids},
        "heatmap_grid": plain(grid),
        "classes": classes,
        "specs": [spec.model_dump(mode="json") for spec in specs],
        "train": True,
        "features": {"head": maps(4, *grid.shape), "backbone1": maps(6, *grid.coarser(4).shape)},
        "logits": maps(len(classes), *grid.shape) - 2,
        "teachers": teachers,
        "boxes": [random_boxes(rng.randint(0, 9), grid, seed), random_boxes(5, grid, seed + 1)],
        "epoch": rng.choice([0, 2, 4]),
    }
    labels = [torch.randint(0, 10, (len(boxes),), generator=generator) for boxes in case["boxes"]]
    own = torch.tensor([classes.index(name) if name in classes else -1 for name in CLASSES])
    return product_result(case | {"labels": [own[x] for x in labels]}, labels, specs, grids)


@pytest.mark.parametrize("name", COVERED)
def test_golden(name: str) -> None:
    case = golden_case(name)
    terms, gradients = run_case(case)
    expected = {PARTS[key]: value for key, value in GOLDEN_CASES[name]["losses"].items()}
    assert {key.split("/")[-1]: value.item() for key, value in terms.items()} == pytest.approx(expected, rel=1e-5)
    limit = 1e-5 * case["gradients"]["head"].abs().max()
    assert (gradients["head"] - case["gradients"]["head"]).abs().max() <= limit


@pytest.mark.parametrize("seed", range(12))
def test_random_case(seed: int) -> None:
    case = make_case(seed)
    require_equal(case, run_case(case))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 180))
def test_more_random_cases(seed: int) -> None:
    case = make_case(seed)
    require_equal(case, run_case(case))


def test_a_stored_teacher_teaches_as_its_floats_do() -> None:
    case = golden_case("fgd_paper_recipe")
    stored = encode(case["teachers"][0]["features/head"], CodecSpec())
    codes = {"features/head": stored.values, "features/head_scale": stored.scale}
    from_codes = run_case(case | {"teachers": [case["teachers"][0] | codes]})
    from_floats = run_case(case | {"teachers": [case["teachers"][0] | {"features/head": stored.decode()}]})
    require_equal({"terms": from_floats[0], "gradients": from_floats[1]}, from_codes)


def test_layers_of_transformers_are_reshaped() -> None:
    case = golden_case("fgd_paper_recipe")
    terms, gradients = run_case(case)
    flat = {name: maps.flatten(2).transpose(1, 2) for name, maps in case["features"].items()}
    found, flat_gradients = run_case(case | {"features": flat})
    gradients["head"] = gradients["head"].flatten(2).transpose(1, 2)
    require_equal({"terms": terms, "gradients": gradients}, (found, flat_gradients))


def test_the_matrix_is_the_products() -> None:
    store, to_ego = TeacherStore(GOLDENS.parent / "store-v2"), torch.eye(4, dtype=torch.float64)
    to_ego[:2, :2], to_ego[:3, 3] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0.9, 0.0, 1.8])
    ego, lidar = (GOLDEN_GRID.model_copy(update={"frame": frame}) for frame in ("ego", "lidar"))
    views = set()
    for seed, token in enumerate(store.positions):
        # The product's augmentation moves LiDAR metres; the same in the ego frame is E M E^-1.
        augmentation = torch.from_numpy(bev_matrix(PUBLIC_AUGMENT, np.random.default_rng(seed)))
        for grid, moved, frame in (
            (lidar, augmentation, torch.eye(4)),
            (ego, to_ego @ augmentation @ torch.linalg.inv(to_ego), to_ego),
        ):
            sample = read_aligned(store, token, moved, frame, ["head"])
            view, *others = (matrix[None] for matrix in (sample["view_matrix"], augmentation, to_ego))
            expected = product_to_teacher(grid, lidar, view, *others)
            torch.testing.assert_close(sample["to_teacher"][None], expected, rtol=0, atol=1e-9)
            views.add(store.view_matrices(token).tolist().index(sample["view_matrix"].tolist()))
    assert len(views) > 1


def test_a_sample_is_read_from_the_view_that_is_nearest() -> None:
    store = TeacherStore(GOLDENS.parent / "store-v2")
    token, to_ego = next(iter(store.positions)), np.eye(4)
    to_ego[:2, :2], to_ego[0, 3] = [[0, 1], [-1, 0]], 0.9
    flip_x_of_ego = np.diag([-1.0, 1.0, 1.0, 1.0])
    sample = read_aligned(store, token, flip_x_of_ego, to_ego, ["head"])
    assert torch.equal(sample["view_matrix"], torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])))
    expected = store.read([token], ["head"], [1])["features/head"][0]
    assert torch.equal(sample["features/head"], expected)
    remaining = np.diag([1.0, -1.0, 1.0, 1.0]) @ np.linalg.inv(flip_x_of_ego @ to_ego)
    np.testing.assert_allclose(sample["to_teacher"].numpy(), remaining, atol=1e-12)


def test_taps_take_the_latest_output_with_gradient_and_leave_no_hook() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    images = torch.randn(1, 1, 4, 4)
    with tapped(model, {"a": "0", "b": "2:0"}, b=lambda maps: maps.detach() + 1) as found:
        expected, _ = model(images)
        with torch.no_grad():
            model(2 * images)
    assert torch.equal(found["a"], model[0](images))
    assert torch.equal(found["b"], expected + 1)
    assert not any(module._forward_hooks for module in model.modules())
    with (
        pytest.raises(BevCacheError, match=r"no such module \(tap a\); got neck; expected 0, 1, 2"),
        tapped(model, {"a": "neck"}),
    ):
        pass


def test_the_stages_of_a_training() -> None:
    case = golden_case("fgd_paper_recipe")
    config = case["config"] | {"two_stage_epoch": 3}
    objective = DistillObjective(config, case["layers"], case["heatmap_grid"], case["classes"], case["specs"])
    assert [objective.detection_weight(epoch) for epoch in (0, 2, 3)] == [0.0, 0.0, 1.0]
    assert objective.names_epochs
    assert not objective.needs_logits


PAIR = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}


@pytest.mark.parametrize(
    ("pair", "term", "message"),
    [
        ({"teacher": "neck"}, {}, r"no such layer \(head-neck\); expected .*head"),
        ({"student_adapter": "identity"}, {}, r"does not fit .*got identity, factor 1, 8 channels of .*; 12 channels"),
        ({"student_adapter": "upsample_1x1conv"}, {}, "adapter that does not fit .*got upsample_1x1conv, factor 1"),
        ({"student_adapter": {"kind": "upsample_1x1conv", "factor": 2}}, {}, r"cells differ .*got \(64, 64\)"),
        ({"teacher_adapter": "1x1conv"}, {}, r"unknown key \(a pair\); got teacher_adapter; .*Write student_adapter"),
        ({}, {"bg_wieght": 1.0}, "unknown key .*got bg_wieght; .*Write bg_weight"),
        ({}, {"foreground_mask": "gauss"}, r"does not have \(foreground_mask\); got gauss; expected gt"),
        ({}, {"kind": "linfengzhang"}, r"does not have \(kind\); got linfengzhang; expected fgd"),
        ({}, {"spatial_attention": ["none", "teacher"]}, "or one for each of 1 pairs"),
        ({}, {"fg_weight": [1.0, 2.0]}, r"expected one value, or one for each of 1 pairs"),
    ],
)  # fmt: skip
def test_what_is_refused(pair: dict[str, Any], term: dict[str, Any], message: str) -> None:
    case = golden_case("fgd_paper_recipe")
    config = {"pairs": [PAIR | pair], "terms": [{"kind": "fgd"} | term]}
    with pytest.raises(BevCacheError, match=message):
        DistillObjective(config, case["layers"], case["heatmap_grid"], case["classes"], case["specs"])


def test_maps_of_another_shape_and_frames_without_a_matrix_are_refused() -> None:
    case = golden_case("fgd_paper_recipe")
    with pytest.raises(BevCacheError, match=r"another shape .*\(head\); got .*\(8, 32, 31\)"):
        run_case(case | {"features": {"head": case["features"]["head"][..., 1:]}})
    ego = {name: (channels, grid._replace(frame="ego")) for name, (channels, grid) in case["layers"].items()}
    with pytest.raises(BevCacheError, match="there is no to_teacher; got lidar; expected ego"):
        run_case(case | {"layers": ego})
