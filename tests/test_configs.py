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
    **dict.fromkeys(("demo/dump.yaml", "study/dump.yaml", "centerpoint_pillar02.yaml"), DumpConfig),
    **dict.fromkeys(STUDENTS, StudentConfig),
}


def pillar02() -> CacheSpec:
    """What a dump of configs/centerpoint_pillar02.yaml holds."""
    canvas = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.2, 0.2))
    layers = {"head": (384, 4), "backbone1": (128, 4), "backbone2": (256, 8)}
    return CacheSpec(
        teacher=TeacherIdentity(name="pillar02", weights_sha256="0", config_sha256="0", tasks=TASKS),
        data=DataIdentity.of("v1.0-trainval", ("train", "val"), ("a",)),
        points=PointPipeline(),
        layers=tuple(
            LayerSpec(name=name, channels=channels, grid=canvas.coarser(factor), codec=CodecSpec())
            for name, (channels, factor) in layers.items()
        ),
        heatmap_grid=canvas.coarser(4),
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


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_builds_and_fits_its_teacher(name: str) -> None:
    with torch.device("meta"):
        module = StudentModule(load_yaml(CONFIGS / name, StudentConfig), [pillar02()])
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
