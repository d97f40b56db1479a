"""The wheel, built and installed where neither this checkout nor the devkit can be imported."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.factories.students import TINY

ROOT = Path(__file__).parent.parent
SOURCES = ("cache", "student", "demo", "cli.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")
WORLD = {
    "train_scenes": 1,
    "val_scenes": 1,
    "key_frames": 2,
    "past_sweeps": 1,
    "image_size": [90, 160],
    "lidar_azimuths": 90,
}
DUMP = {
    "teacher": "own_teacher:make_teacher",
    "layers": {"head": {}},
    "version": "v1.0-mini",
    "splits": ["mini_train"],
    "workers": 0,
}
DISTILL = {
    "pairs": [{"student": "head", "teacher": "head", "student_adapter": "1x1conv"}],
    "terms": [{"kind": "fgd", "fg_weight": 6.0e-3, "bg_weight": 4.0e-2}],
}
HEAD = TINY["detector"]["head"] | {
    "tasks": [["car"], ["pedestrian"]],
    "decoding": {"nms_type": "circle", "min_radius": [4.0, 0.5]},
}
GRID = {"x_range_m": [-16.0, 16.0], "y_range_m": [-16.0, 16.0], "cell_m": [0.8, 0.8]}
"""The teacher's classes and cells."""
CONFIGURED = TINY | {"detector": TINY["detector"] | {"head": HEAD, "grid": GRID}, "distill": DISTILL}
STUDENT = "run/checkpoints/last.ckpt"
COMMANDS = (
    "make-world world --config world.yaml",
    "dump-teacher dump.yaml --data world --random-weights --out teacher.zarr",
    "train-student student.yaml --data world --cache teacher.zarr --out run",
    f"predict {STUDENT} --data world --out results.json --video scene.gif",
    f"evaluate --data world --checkpoint {STUDENT}",
)
ALL_IN_ONE = """
import sys
from offline_distillbev.cli import app
for line in sys.stdin.read().splitlines():
    try:
        app(line.split())
    except SystemExit as end:
        print(line.split()[0], end.code, flush=True)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, base / "checkout" / name)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", base, base / "checkout")
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, timeout=200)
    (built,) = base.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, this one's libraries, and a devkit that cannot be imported."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, timeout=200)
    (packages,) = folder.glob("lib/*/site-packages")
    # What a .pth adds is searched last, and its own .pth files, such as this checkout's, are not read.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    for devkit in ("nuscenes", "mmdet3d"):
        (packages / f"{devkit}.py").write_text(f"raise ImportError('no {devkit} here')")
    return python


def test_it_holds_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = {name: archive.read(name).decode() for name in names if name.endswith((".py", ".txt"))}
    assert {name.split("/")[0] for name in names} == {"offline_distillbev", "offline_distillbev-0.1.0.dist-info"}
    modules = {name.removeprefix("offline_distillbev/") for name in names if name.endswith(".py")} - {"__init__.py"}
    ours = {str(path.relative_to(ROOT)) for top in SOURCES[:3] for path in (ROOT / top).rglob("*.py")} | {"cli.py"}
    assert ours - modules == {"demo/pipeline.py", "demo/report.py"}
    assert modules <= ours
    assert "offline_distillbev/cache/visualization/report.css" in names
    assert "from offline_distillbev.cache.errors import" in sources["offline_distillbev/cli.py"]
    assert "bev-distill verify teacher.zarr --quick" in sources["offline_distillbev/cli.py"]
    commands = sources["offline_distillbev-0.1.0.dist-info/entry_points.txt"]
    assert commands == "[console_scripts]\nbev-distill = offline_distillbev.cli:main\n"


def test_an_empty_environment_dumps_trains_and_predicts(python: Path, tmp_path: Path) -> None:
    script = (
        (ROOT / "docs" / "own_teacher.py")
        .read_text()
        .replace("from cache import", "from offline_distillbev.cache import")
    )
    (tmp_path / "own_teacher.py").write_text(script)
    for name, content in {"world": WORLD, "dump": DUMP, "student": CONFIGURED}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    environment = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 280}
    elsewhere = {"env": os.environ | {"COLUMNS": "400", "XDG_CACHE_HOME": str(tmp_path / "cache")}}
    run = subprocess.run([python, "-c", ALL_IN_ONE], input="\n".join(COMMANDS), **environment, **elsewhere)
    ends = [
        line.split() for line in run.stdout.splitlines() if line.split()[0] in {line.split()[0] for line in COMMANDS}
    ]
    assert ends == [[line.split()[0], "1" if line.startswith("evaluate") else "0"] for line in COMMANDS], run.stderr
    assert "2 of 2 samples written" in run.stdout
    assert (tmp_path / "results.json").stat().st_size > 0 and (tmp_path / "scene.gif").stat().st_size > 0
    message = "the official metrics need nuScenes' devkit (evaluate); got no nuscenes here; expected nuscenes-devkit"
    assert message in run.stderr
    assert "pip install 'nuscenes-devkit>=1.2'" in run.stderr


def test_its_command_stands_alone(python: Path, tmp_path: Path) -> None:
    there = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 100}
    helped = subprocess.run([python.parent / "bev-distill", "dump-teacher", "--help"], **there)
    assert helped.returncode == 0 and "bev-distill dump-teacher" in helped.stdout and "cli " not in helped.stdout
    assert not (python.parent / "cli").exists()
    foreign = subprocess.run([python, "-c", "import cache"], **there)
    assert "No module named 'cache'" in foreign.stderr
