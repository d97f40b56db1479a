from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, CodecSpec
from cache.store.batch import TeacherBatch
from cache.store.codec import encode
from student.config.student import TASKS
from student.distill.adapters import FeatureLayer
from student.distill.config import DistillConfig
from student.distill.objective import DistillObjective
from student.distill.predictions import TeacherMaps, TeacherPredictions
from tests.factories.distill import make_spec

# H != W, and not centred at 0.
GRID = BevGrid(x_range_m=(-6.4, 19.2), y_range_m=(0.0, 12.8), cell_m=(0.8, 0.8))
STUDENT = {
    "backbone1": FeatureLayer(channels=6, grid=GRID.coarser(4)),
    "backbone2": FeatureLayer(channels=8, grid=GRID.coarser(8)),
    "head": FeatureLayer(channels=4, grid=GRID),
}
TEACHER = {"backbone1": (5, GRID), "backbone2": (6, GRID.coarser(2)), "head": (7, GRID)}
PAIRS = [
    {"student": "backbone1", "teacher": "backbone1", "student_adapter": {"kind": "upsample_3layer", "factor": 4}},
    {"student": "backbone2", "teacher": "backbone2", "student_adapter": {"kind": "upsample_3layer", "factor": 4}},
    {"student": "head", "teacher": "head", "student_adapter": "1x1conv"},
]
RECIPE = {
    "kind": "fgd",
    "fg_weight": 6e-3,
    "bg_weight": 4e-2,
    "spatial_weight": 2.5e-3,
    "spatial_attention": "teacher_student",
    "channel_attention": False,
    "false_positives": ["none", "none", "teacher"],
    "fp_weight": 6e-2,
}


class Batch:
    """Two made-up samples."""

    def __init__(self, teacher: dict[str, tuple[int, BevGrid]] = TEACHER, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.features = {name: random(2, layer.channels, *layer.grid.shape) for name, layer in STUDENT.items()}
        self.logits = random(2, 10, *GRID.shape) - 2
        stored = {
            name: encode(random(2, channels, *grid.shape).relu(), CodecSpec())
            for name, (channels, grid) in teacher.items()
        }
        self.teacher = TeacherBatch(
            tokens=("a", "b"),
            features=stored,
            heatmap=(random(2, 10, *GRID.shape).sigmoid() ** 4 * 255).to(torch.uint8),
            canvas_mask=torch.rand(2, 64, 128, generator=generator) > 0.9,
            head_maps={},
            view_matrix=torch.eye(4).expand(2, 4, 4),
        )
        self.boxes = (
            torch.tensor([[3.0, 5.0, 0, 4.2, 1.9, 1.5, 0.3, 0, 0], [15.0, 2.0, 0, 9.0, 2.6, 3, 1.2, 0, 0]]),
            torch.tensor([[-2.0, 9.0, 0, 0.7, 0.7, 1.7, 0.0, 0, 0]]),
        )
        self.labels = torch.tensor([0, 3]), torch.tensor([8])

    def terms(self, objective: DistillObjective, epoch: int = 0) -> dict[str, Tensor]:
        return objective(self.features, self.logits, self.teacher, self.boxes, self.labels, epoch)


def build(
    terms: list[dict[str, Any]], pairs: list[dict[str, Any]] = PAIRS, specs: Any = None, **config: Any
) -> DistillObjective:
    torch.manual_seed(0)
    parsed = DistillConfig.parse({"pairs": pairs, "terms": terms, **config}, "test")
    return DistillObjective(parsed, STUDENT, GRID, TASKS, specs or [make_spec(TEACHER, heatmap_grid=GRID)])


def test_the_papers_recipe() -> None:
    terms = Batch().terms(build([RECIPE]))
    parts = ("foreground", "background", "spatial")
    expected = [f"distill/fgd/{pair}/{part}" for pair in ("backbone1", "backbone2", "head") for part in parts]
    assert sorted(terms) == sorted([*expected, "distill/fgd/head/false_positive"])
    assert all(value.dim() == 0 and value.isfinite() and value > 0 for value in terms.values())


def test_every_term_together_with_weights() -> None:
    kinds = (
        "all",
        "fitnet",
        "attention_transfer",
        "foreground_background",
        "s2m2_ssd_feature",
        "non_local",
        "affinity",
        "fgd",
        "linfengzhang",
    )
    pairs = [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}]
    heatmaps = ("s2m2_ssd_heatmap", "gauss_focal_heatmap", "heatmap_temperature")
    names = set(Batch().terms(build([{"kind": kind} for kind in (*kinds, *heatmaps)], pairs)))
    assert names == {
        "distill/all/head/feature",
        "distill/fitnet/head/feature",
        "distill/attention_transfer/head/attention",
        "distill/foreground_background/head/foreground",
        "distill/foreground_background/head/background",
        *(f"distill/s2m2_ssd_feature/head/{part}" for part in ("tp", "fp", "fn")),
        "distill/non_local/head/relation",
        "distill/affinity/head/affinity",
        *(f"distill/fgd/head/{part}" for part in ("foreground", "background", "channel", "spatial")),
        *(f"distill/linfengzhang/head/{part}" for part in ("feature", "channel", "spatial")),
        *(f"distill/s2m2_ssd_heatmap/{part}" for part in ("tp", "fpfn")),
        *(f"distill/gauss_focal_heatmap/task{task}" for task in range(len(TASKS))),
        "distill/heatmap_temperature/classes",
    }


@pytest.mark.parametrize(
    ("term", "weights"),
    [
        ({"kind": "all", "weight": 1.0}, ["weight"]),
        ({"kind": "fitnet", "weight": 1.0}, ["weight"]),
        ({"kind": "attention_transfer", "weight": 1.0}, ["weight"]),
        ({"kind": "foreground_background"}, ["fg_weight", "bg_weight"]),
        ({"kind": "linfengzhang"}, ["feature_weight", "channel_weight", "spatial_weight"]),
        ({"kind": "s2m2_ssd_feature"}, ["tp_weight", "fp_weight", "fn_weight"]),
        ({"kind": "s2m2_ssd_feature", "mode": "old"}, ["tp_weight", "fpfn_weight"]),
        ({"kind": "non_local"}, ["weight"]),
        ({"kind": "affinity"}, ["weight"]),
        ({"kind": "unidistill_points"}, ["feature_weight", "relation_weight"]),
        ({"kind": "tigbev_features"}, ["keypoint_weight", "channel_weight"]),
        ({"kind": "bevdistill_feature"}, ["weight"]),
        ({"kind": "fgd"}, ["fg_weight", "bg_weight", "channel_weight", "spatial_weight"]),
        ({"kind": "s2m2_ssd_heatmap"}, ["tp_weight", "fpfn_weight"]),
        ({"kind": "heatmap_temperature"}, ["weight"]),
    ],
)
def test_weights_multiply(term: dict[str, Any], weights: list[str]) -> None:
    pairs = [PAIRS[2]]
    once = Batch().terms(build([term | dict.fromkeys(weights, 1.0)], pairs))
    thrice = Batch().terms(build([term | dict.fromkeys(weights, 3.0)], pairs))
    assert len(once) == len(weights)
    for name, value in once.items():
        assert thrice[name].item() == pytest.approx(3 * value.item(), rel=1e-5)


def test_affinity_needs_the_same_cells_before_the_adapter() -> None:
    where = r"\(distill\.pairs, backbone1\)"
    with pytest.raises(ConfigError, match=rf"affinity compares .*{where}; got 4 x 8 cells; expected 16 x 32"):
        build([{"kind": "affinity"}])


def test_s2m2_by_its_definition() -> None:
    one, threshold = Batch(), 0.45
    terms = [
        {"kind": "s2m2_ssd_feature", "mode": mode, "name": mode, "threshold": threshold} for mode in ("old", "new")
    ]
    objective = build(terms, [PAIRS[2]])
    found = {name.removeprefix("distill/"): value.item() for name, value in one.terms(objective).items()}
    adapted = objective.pairs[0].student_adapter(one.features["head"]).detach()
    error = (adapted - one.teacher.features["head"].decode()).square().mean(dim=1)
    teacher = TeacherPredictions(heatmap=one.teacher.heatmap, canvas_mask=one.teacher.canvas_mask)
    predictions = objective._predictions(one.logits, (teacher,), one.boxes, one.labels, 0)
    seen, there = one.logits.sigmoid().amax(1) > threshold, predictions.truth_max > threshold
    regions = {"tp": seen & there, "fp": seen & ~there, "fn": ~seen & there, "fpfn": seen ^ there}
    assert all(region.any() for region in regions.values())
    for name, part in (("new", "tp"), ("new", "fp"), ("new", "fn"), ("old", "tp"), ("old", "fpfn")):
        means = [e[r].mean() for e, r in zip(error, regions[part], strict=True) if r.any()]
        assert found[f"{name}/head/{part}"] == pytest.approx(torch.stack(means).mean().item(), rel=1e-5), part


def test_foreground_background_without_scale_counts_every_cell_once() -> None:
    one, pair = Batch(), [PAIRS[2]]
    plain = {"kind": "foreground_background", "scale": False, "fg_weight": 1.0, "bg_weight": 1.0}
    parts = one.terms(build([plain], pair))
    whole = one.terms(build([{"kind": "fitnet", "weight": 2.0}], pair))
    assert sum(parts.values()).item() == pytest.approx(whole["distill/fitnet/head/feature"].item(), rel=1e-5)


def test_per_pair_weights_and_names() -> None:
    one = Batch()
    equal = one.terms(build([{"kind": "all", "name": "mse"}]))
    scaled = one.terms(build([{"kind": "all", "name": "mse", "weight": [1.0, 2.0, 0.0]}]))
    assert set(equal) == {f"distill/mse/{pair}/feature" for pair in ("backbone1", "backbone2", "head")}
    assert scaled["distill/mse/backbone2/feature"].item() == pytest.approx(
        2 * equal["distill/mse/backbone2/feature"].item(), rel=1e-5
    )
    assert scaled["distill/mse/head/feature"] == 0


def test_epochs() -> None:
    objective = build([{**RECIPE, "fp_epoch": 5}], multi_scale_epoch=2, two_stage_epoch=3)
    pairs = lambda epoch: {name.split("/")[2] for name in Batch().terms(objective, epoch)}  # noqa: E731
    assert pairs(1) == {"head"}
    assert pairs(2) == {"head", "backbone1", "backbone2"}
    assert "distill/fgd/head/false_positive" not in Batch().terms(objective, 4)
    assert "distill/fgd/head/false_positive" in Batch().terms(objective, 5)
    assert [objective.detection_weight(epoch) for epoch in (0, 2, 3, 4)] == [0.0, 0.0, 1.0, 1.0]


def test_stored_and_decoded_teachers_teach_the_same() -> None:
    one, objective = Batch(), build([RECIPE, {"kind": "heatmap_temperature"}])
    stored = one.terms(objective)
    features = {name: layer.decode() for name, layer in one.teacher.features.items()}
    maps = TeacherMaps(features=features, heatmap=one.teacher.heatmap / 255, canvas_mask=one.teacher.canvas_mask)
    decoded = objective(one.features, one.logits, maps, one.boxes, one.labels, 0)
    for name, value in stored.items():
        assert decoded[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_teacher_adapters_that_learn_get_a_gradient() -> None:
    pair = {"student": "backbone1", "teacher": "head", "teacher_adapter": {"kind": "downsample_3layer", "factor": 4}}
    objective = build([{"kind": "fgd"}], [pair])
    sum(Batch().terms(objective).values()).backward()
    assert all(p.grad is not None for p in objective.pairs.parameters())
    assert objective.pairs[0].channels == STUDENT["backbone1"].channels


def test_several_teachers() -> None:
    second = {"head": (9, GRID)}
    first_spec, second_spec = make_spec(TEACHER, heatmap_grid=GRID), make_spec(second)
    one, other = Batch(), Batch(second, seed=1)
    terms = [{"kind": "fgd", "fg_weight": [1.0, 2.0]}, {"kind": "heatmap_temperature", "cache": 1, "name": "answers"}]
    both = build(terms, [PAIRS[2], {**PAIRS[2], "cache": 1}], [first_spec, second_spec])
    found = both(one.features, one.logits, (one.teacher, other.teacher), one.boxes, one.labels, 0)
    assert {"distill/fgd/head/foreground", "distill/fgd/head@1/foreground"} < found.keys()
    alone = build([{"kind": "heatmap_temperature"}], [], [second_spec])
    expected = alone(one.features, one.logits, other.teacher, one.boxes, one.labels, 0)
    assert found["distill/answers/classes"] == expected["distill/heatmap_temperature/classes"]


def test_a_teacher_with_classes_in_another_order() -> None:
    one = Batch()
    terms = [{"kind": "heatmap_temperature"}, {"kind": "gauss_focal_heatmap"}]
    expected = one.terms(build(terms, [PAIRS[2]]))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    spec = make_spec(TEACHER, heatmap_grid=GRID)
    teacher = spec.teacher.model_copy(update={"tasks": tuple((CLASSES[index],) for index in order)})
    objective = build(terms, [PAIRS[2]], [spec.model_copy(update={"teacher": teacher})])
    maps = TeacherMaps(
        features=one.teacher.features, heatmap=one.teacher.heatmap[:, order], canvas_mask=one.teacher.canvas_mask
    )
    found = objective(one.features, one.logits, maps, one.boxes, one.labels, 0)
    assert {name: value.item() for name, value in found.items()} == {n: v.item() for n, v in expected.items()}


def test_a_teacher_with_finer_heatmaps() -> None:
    one, fine = Batch(), GRID.resized((32, 64))
    terms = [{**RECIPE, "false_positives": "teacher"}, {"kind": "heatmap_temperature"}]
    expected = one.terms(build(terms))
    heatmap = one.teacher.heatmap.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    maps = TeacherMaps(features=one.teacher.features, heatmap=heatmap, canvas_mask=one.teacher.canvas_mask)
    objective = build(terms, specs=[make_spec(TEACHER, heatmap_grid=fine)])
    found = objective(one.features, one.logits, maps, one.boxes, one.labels, 0)
    assert {name: value.item() for name, value in found.items()} == {n: v.item() for n, v in expected.items()}


def test_the_student_of_some_classes_ignores_the_others() -> None:
    tasks = (("car",), ("bus",))
    spec = make_spec(TEACHER, heatmap_grid=GRID)
    spec = spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"tasks": tasks})})
    config = DistillConfig.parse({"terms": [{"kind": "gauss_focal_heatmap"}]}, "test")
    objective = DistillObjective(config, STUDENT, GRID, tasks, [spec])
    one = Batch()
    maps = TeacherMaps(features={}, heatmap=one.teacher.heatmap[:, :2], canvas_mask=one.teacher.canvas_mask)
    arguments = (one.features, one.logits[:, :2], maps, one.boxes)
    known = objective(*arguments, one.labels, 0)
    # Sample b holds a pedestrian only; as one more bus it would be one more peak.
    more = objective(*arguments, (one.labels[0], torch.tensor([3])), 0)
    assert more["distill/gauss_focal_heatmap/task1"].item() == pytest.approx(
        known["distill/gauss_focal_heatmap/task1"].item() / 2, rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_finite_and_close(dtype: torch.dtype) -> None:
    one, objective = Batch(), build([RECIPE])
    full = one.terms(objective)
    with torch.autocast("cpu", dtype=dtype):
        half = one.terms(objective)
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(value.item(), rel=0.05), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_terms_without_waiting_for_masks() -> None:
    one, objective = Batch(), build([RECIPE, {"kind": "heatmap_temperature"}])
    expected = one.terms(objective)
    objective.cuda()
    one.features = {name: features.cuda() for name, features in one.features.items()}
    one.logits, one.teacher = one.logits.cuda(), one.teacher.to("cuda")
    one.boxes, one.labels = tuple(b.cuda() for b in one.boxes), tuple(x.cuda() for x in one.labels)
    found = one.terms(objective)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-3
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.terms(objective)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_reach_adapters_and_student() -> None:
    one, objective = Batch(), build([RECIPE])
    for features in one.features.values():
        features.requires_grad_()
    sum(one.terms(objective).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert all(features.grad is not None for features in one.features.values())


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ({"student": "neck"}, ConfigError, "student has no such layer .*got neck; expected one of backbone1"),
        ({"teacher": "neck"}, MismatchError, "the cache lacks a layer; got backbone1, .*expected neck"),
        (
            {"student_adapter": "identity"},
            ConfigError,
            "channels differ and no adapter.*'head' with 4 channels; expected 7, .*Set student_adapter to 1x1conv",
        ),
        ({"student": "backbone1"}, MismatchError, "different cells.*got student 4 x 8 .*Upsample the student by 4"),
        ({"teacher_adapter": {"kind": "maxpool", "factor": 3}}, MismatchError, "cannot merge the cells"),
        ({"cache": 1}, ConfigError, "cache that does not exist .distill.; got cache 1; expected below 1"),
    ],
)
def test_pairs_that_are_refused(pair: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build([{"kind": "fgd"}], [{**PAIRS[2], **pair}])


def test_linfengzhang_refuses_to_compare_cells_of_different_size() -> None:
    with pytest.raises(ConfigError, match=r"before its adapter .*factor 4.*Set spatial_weight to 0"):
        build([{"kind": "linfengzhang"}], PAIRS[:1])
    terms = Batch().terms(build([{"kind": "linfengzhang", "spatial_weight": 0.0}], PAIRS[:1]))
    assert sorted(name.split("/")[-1] for name in terms) == ["channel", "feature"]


def test_caches_that_are_refused() -> None:
    away = GRID.model_copy(update={"x_range_m": (200.0, 225.6)})
    with pytest.raises(MismatchError, match=r"do not overlap .heatmaps of cache 0.*x 200 .. 225.6 m"):
        build([{"kind": "gauss_focal_heatmap"}], [], [make_spec(TEACHER, heatmap_grid=away)])
    with pytest.raises(MismatchError, match="canvas mask of cache 0"):
        build([RECIPE], specs=[make_spec(TEACHER, heatmap_grid=GRID, canvas_grid=away)])
    spec = make_spec(TEACHER, heatmap_grid=GRID)
    cars = spec.teacher.model_copy(update={"tasks": (("car",),)})
    with pytest.raises(MismatchError, match=r"lacks a class of the student's \(cache 0\); got car; expected car"):
        build([RECIPE], specs=[spec.model_copy(update={"teacher": cars})])


def test_cells_that_do_not_fit_each_other_are_refused_before_training() -> None:
    odd = GRID.resized((12, 24))
    with pytest.raises(ConfigError, match=r"heatmaps of teacher and student.*got 12 x 24 cells; expected 16 x 32"):
        build([RECIPE], specs=[make_spec(TEACHER, heatmap_grid=odd)])
    specs = [make_spec(TEACHER, heatmap_grid=GRID, canvas_grid=odd)]
    build([{"kind": "fgd"}], specs=specs)
    with pytest.raises(ConfigError, match=r"distill.pairs, backbone1: canvas mask"):
        build([{"kind": "fgd", "non_empty_weight": 0.1}], specs=specs)


def test_batches_that_are_not_as_promised_are_refused() -> None:
    one, objective = Batch(), build([RECIPE])

    def run(features: dict[str, Tensor], teacher: Any) -> None:
        objective(features, one.logits, teacher, one.boxes, one.labels, 0)

    with pytest.raises(MismatchError, match="built for another number of teachers; got 2, with 2 matrices; expected 1"):
        run(one.features, [one.teacher, one.teacher])
    without = {name: features for name, features in one.features.items() if name != "backbone2"}
    with pytest.raises(MismatchError, match=r"the student's layer 'backbone2' is not the .*got only backbone1, head"):
        run(without, one.teacher)
    with pytest.raises(MismatchError, match=r"the student's layer 'head'.*got \(4, 8, 8\); expected \(4, 16, 32\)"):
        run({**one.features, "head": torch.zeros(2, 4, 8, 8)}, one.teacher)
    swapped = {**one.teacher.features, "head": one.teacher.features["backbone1"]}
    with pytest.raises(MismatchError, match=r"the teacher's layer 'head'.*got \(5, 16, 32\); expected \(7, 16, 32\)"):
        run(one.features, replace(one.teacher, features=swapped))


def test_cells_are_weighted_by_the_committees_variance() -> None:
    """The mean squared difference of (16), each cell's divided by 1 + variance."""
    teacher = {"head": (7, GRID), "head_variance": (1, GRID)}
    one = Batch()
    variance = encode(torch.rand(2, 1, *GRID.shape), CodecSpec(kind="float16"))
    one.teacher = replace(one.teacher, features={"head": one.teacher.features["head"], "head_variance": variance})
    weighted = {**PAIRS[2], "weight_by": "variance"}
    terms, spec = [{"kind": "fitnet"}], make_spec(teacher, heatmap_grid=GRID)
    found = one.terms(build(terms, [weighted], [spec]))["distill/fitnet/head/feature"]
    objective = build(terms, [PAIRS[2]], [spec])
    adapted = objective.pairs[0].student_adapter(one.features["head"]).detach()
    errors = (adapted - one.teacher.features["head"].decode()).square().sum(dim=1) / (1 + variance.decode()[:, 0])
    assert found.item() == pytest.approx(errors.sum().item() / (2 * 2), rel=1e-5)
    here = torch.eye(4).expand(2, 4, 4)
    warped = build(terms, [weighted], [spec])(
        one.features, one.logits, one.teacher, one.boxes, one.labels, 0, to_teacher=[here]
    )
    assert warped["distill/fitnet/head/feature"].item() == pytest.approx(found.item(), rel=1e-5)


def test_a_variance_that_the_store_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"store keeps none .*head.; got backbone1, .*expected head_variance.*--mean"):
        build([{"kind": "all"}], [{**PAIRS[2], "weight_by": "variance"}])
    pooled = {**PAIRS[2], "weight_by": "variance", "teacher_adapter": {"kind": "maxpool", "factor": 2}}
    spec = make_spec({"head": (7, GRID), "head_variance": (1, GRID)}, heatmap_grid=GRID)
    with pytest.raises(ConfigError, match=r"before an adapter .*got weight_by variance, teacher_adapter maxpool"):
        build([{"kind": "all"}], [{**pooled, "student_adapter": {"kind": "maxpool_1x1conv", "factor": 2}}], [spec])
