"""Every configuration in configs/ parses, builds and fits the teacher that it is meant for."""

from pathlib import Path

import pytest
import torch

from cache.config import Strict, load_yaml
from cache.dumping.config import DumpConfig
from cache.geometry.grid import BevGrid
from cache.geometry.views import PUBLIC_AUGMENT
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from demo.world.config import WorldConfig
from student.config.student import TASKS, StudentConfig
from student.models.detectors import build_detector
from student.training.module import StudentModule

CONFIGS = Path(__file__).parent.parent / "configs"
STUDENTS = sorted(path.name for path in CONFIGS.glob("bev*.yaml"))
KINDS: dict[str, type[Strict]] = {
    "demo/world.yaml": WorldConfig,
    "demo/student.yaml": StudentConfig,
    "study/world.yaml": WorldConfig,
    "study/student.yaml": StudentConfig,
    **dict.fromkeys(
        ("demo/dump.yaml", "study/dump.yaml", *(path.name for path in CONFIGS.glob("centerpoint_*.yaml"))), DumpConfig
    ),
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
