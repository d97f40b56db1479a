"""The architecture, held: each file imports only files above it, and some rooms never see some libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HOUSE = [
    ("cache", "errors versions"),
    ("cache.terminal", "console ending"),
    ("cache", "strict"),
    ("cache.show", "markup tables charts"),
    ("cache", "grid views depth spec frames points loader"),
    ("cache", "checkpoint detector teacher teacher_training"),
    ("cache", "codec"),
    ("cache.show", "pictures"),
    ("cache", "durable shards store documents preconditions part shard_writer writer shard_reader"),
    ("cache.show", "facts"),
    ("cache", "tokens sample reader prefetch record probe dump plan verify"),
    ("cache.show", "survey"),
    ("cache", "report"),
    ("cache.show", "page browser"),
    ("student.distill", "term_configs config"),
    ("student", "training_config config augment images depth_map dataset"),
    ("student", "backbones depth lift bev nms head targets detectors"),
    ("student.distill", "inherit threads adapters ground warp boxes criteria attention masks onepass moments regions"),
    ("student.distill", "losses relations responses answers pairs fgd terms objective plots"),
    ("student.show", "scenes"),
    ("student", "checkpoint"),
    ("student.public", "formats importing"),
    ("student.show", "matches results plots"),
    ("student", "metrics early_checks teacher_boxes evaluate"),
    ("student.training", "sampling clock process_memory recompute module"),
    ("student.training", "saving loaders preflight validation callbacks preparation"),
    ("student", "trainer"),
    ("student.training", "profile live_bytes memory plan"),
    ("student.fidelity", "closeness parts measure report"),
    ("demo", "config road shapes actors light placing scene rays paint camera lidar shots files tables world"),
    ("demo", "report pipeline"),
]
ORDER = [f"{room}.{name}" for room, names in HOUSE for name in names.split()] + ["cli"]

TEACHER_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine", "spconv")


def modules() -> list[str]:
    """Every module of the project, from the folders themselves."""
    files = [*ROOT.glob("cache/**/*.py"), *ROOT.glob("student/**/*.py"), *ROOT.glob("demo/*.py"), ROOT / "cli.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return sorted(name for name in names if not name.endswith("__init__"))


def imports_of(module: str) -> set[str]:
    """The project's modules that a module imports, at its top or inside a function."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(modules())


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_upwards(module: str) -> None:
    wrong = {other for other in imports_of(module) if ORDER.index(other) >= ORDER.index(module)}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, which stand below it"


@pytest.mark.parametrize("module", [name for name in ORDER if name.startswith("cache.")])
def test_cache_never_imports_student(module: str) -> None:
    assert not {name for name in imports_of(module) if name.startswith("student")}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cache.reader", (*TEACHER_LIBRARIES, "pytorch_lightning", "nuscenes", "matplotlib", "rich")),
        ("student.distill.objective", (*TEACHER_LIBRARIES, "pytorch_lightning", "nuscenes")),
        ("student.trainer", TEACHER_LIBRARIES),
        ("student.evaluate", TEACHER_LIBRARIES),
        ("student.fidelity.measure", TEACHER_LIBRARIES),
    ],
)
def test_importing_stays_light(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*[name for name in {forbidden!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
