"""Every configuration in configs/ parses, builds and fits the teacher that it is meant for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.config import Strict, load_yaml
from cache.dumping.config import DumpConfig
from cache.geometry.grid import BevGrid
from cache.geometry.views import PUBLIC_AUGMENT
from cache.nuscenes.frames import Frames
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from cache.store.batch import TeacherBatch
from cache.store.codec import encode
from demo.world.config import WorldConfig
from student.config.student import TASKS, StudentConfig
from student.data.dataset import StudentDataset
from student.distill.head_maps import HEAD_MAPS
from student.models.detectors import build_detector
from student.training.module import StudentModule
from tests.factories.distill import make_spec

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(f"recipes/{path.name}" for path in CONFIGS.glob("recipes/*.yaml"))
STUDENTS = [*sorted(path.name for path in CONFIGS.glob("bev*.yaml")), *RECIPES]
KINDS: dict[str, type[Strict]] = {
    "demo/world.yaml": WorldConfig,
    "demo/student.yaml": StudentConfig,
    "study/world.yaml": WorldConfig,
    **dict.fromkeys(("demo/dump.yaml", *(path.name for path in CONFIGS.glob("centerpoint_*.yaml"))), DumpConfig),
    **dict.fromkeys(STUDENTS, StudentConfig),
}


def dumped(name: str) -> CacheSpec:
    """What a dump of configs/centerpoint_`name`.yaml holds."""
    grids = {"pillar02": (51.2, 0.2, 4), "voxel01": (51.2, 0.1, 8), "voxel0075": (54.0, 0.075, 8)}
    range_m, cell_m, stride = grids[name]
    canvas = BevGrid(x_range_m=(-range_m, range_m), y_range_m=(-range_m, range_m), cell_m=(cell_m, cell_m))
    layers = {"head": (512, stride), "backbone0": (128, stride), "backbone1": (256, 2 * stride)}
    if name == "pillar02":
        layers = {"head": (384, 4), "backbone1": (128, 4), "backbone2": (256, 8)}
    return CacheSpec(
        teacher=TeacherIdentity(name=name, weights_sha256="0", config_sha256="0", tasks=TASKS),
        data=DataIdentity.of("v1.0-trainval", ("train", "val"), ("a",)),
        points=PointPipeline(),
        layers=tuple(
            LayerSpec(name=name, channels=channels, grid=canvas.coarser(factor), codec=CodecSpec())
            for name, (channels, factor) in layers.items()
        ),
        heatmap_grid=canvas.coarser(stride),
        canvas_grid=canvas,
        head_maps=HEAD_MAPS,
    )


def test_every_file_is_known() -> None:
    assert sorted(KINDS) == sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_configuration_parses(name: str) -> None:
    load_yaml(CONFIGS / name, KINDS[name])


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_is_augmented_as_in_the_public_code(name: str) -> None:
    augment = load_yaml(CONFIGS / name, StudentConfig).bev_augment
    assert augment.model_dump(exclude={"replay"}) == PUBLIC_AUGMENT.model_dump()


@pytest.mark.parametrize(
    ("name", "teacher"),
    [(n, teacher) for n in STUDENTS for teacher in (("voxel01", "voxel0075") if "voxel" in n else ("pillar02",))],
)
def test_every_student_builds_and_fits_its_teacher(name: str, teacher: str) -> None:
    with torch.device("meta"):
        module = StudentModule(load_yaml(CONFIGS / name, StudentConfig), [dumped(teacher)])
    assert module.objective is not None


SMALL = (
    "training.activation_checkpointing=false",
    "detector.image_backbone=resnet18",
    "detector.image_neck_channels=8",
    "detector.lift_channels=8",
    "detector.bev_channels=[8, 8, 8]",
    "detector.bev_neck_channels=8",
    "detector.head.shared_channels=8",
    "detector.depth_m=[1.0, 41.0, 4.0]",
    "detector.grid={x_range_m: [-16.0, 16.0], y_range_m: [-16.0, 16.0], cell_m: [0.8, 0.8]}",
    "image.size=[64, 96]",
)


def made_up_teacher(spec: CacheSpec) -> TeacherBatch:
    """Two samples of a teacher with these layers."""
    return TeacherBatch(
        tokens=("a", "b"),
        features={
            layer.name: encode(torch.randn(2, layer.channels, *layer.grid.shape).relu(), layer.codec)
            for layer in spec.layers
        },
        heatmap=(torch.rand(2, 10, *spec.heatmap_grid.shape) ** 8 * 255).to(torch.uint8),
        canvas_mask=torch.rand(2, *spec.canvas_grid.shape) > 0.9,
        head_maps={name: torch.randn(2, 6, n, *spec.heatmap_grid.shape).half() for name, n in HEAD_MAPS.items()},
        view_matrix=torch.eye(4).expand(2, 4, 4),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_a_step(name: str, made_frames: Frames) -> None:
    config = load_yaml(CONFIGS / name, StudentConfig, SMALL)
    grid = config.detector.grid
    layers = {"head": (6, grid), "backbone1": (5, grid), "backbone2": (4, grid.coarser(2))}
    spec = make_spec(layers, head_maps=HEAD_MAPS)
    torch.manual_seed(0)
    module = StudentModule(config, [spec])
    dataset = StudentDataset(made_frames, config, config.detector.times, module.detector.supervise_depth)
    batch = replace(dataset.collate([dataset[0], dataset[1]]), teachers=(made_up_teacher(spec),), to_teachers=(None,))
    terms = module.loss_terms(batch)
    torch.stack(list(terms.values())).sum().backward()
    assert {term for term in terms if term.startswith("distill/")}
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert module.objective is not None
    adapters = [pair.student_adapter for pair in module.objective.pairs]
    before = [torch.nn.utils.parameters_to_vector(adapter.parameters()).detach() for adapter in adapters]
    torch.optim.AdamW(module.parameters(), lr=config.training.learning_rate).step()
    after = [torch.nn.utils.parameters_to_vector(adapter.parameters()) for adapter in adapters]
    assert all(new.isfinite().all() and not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "cells", "millions"),
    [
        ("bevdepth_r50.yaml", (256, 704), (128, 128), 52.2),
        ("bevdepth4d_r50.yaml", (256, 704), (128, 128), 53.2),
        ("bevdepth4d_r101.yaml", (512, 1408), (256, 256), 72.2),
    ],
)
def test_the_sizes_of_the_students(name: str, size: tuple[int, int], cells: tuple[int, int], millions: float) -> None:
    config = load_yaml(CONFIGS / name, StudentConfig)
    assert (config.image.size, config.detector.grid.shape) == (size, cells)
    with torch.device("meta"):
        detector = build_detector(config.detector)
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
