"""Teachers and points hooks of the user's own, by name; the documentation's example is dumped."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.dumping.run import dump
from cache.errors import TeacherError
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.points import load_points
from cache.spec import CodecSpec, PointPipeline
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from cache.teacher.plugins import PointsHook, imported, is_plugin, make_teacher, teacher_points, with_hook
from tests.factories.stores import SmallFrames, SmallTeacher, make_config

DOCS = Path(__file__).parents[3] / "docs"
DEMO = DOCS.parent / "configs" / "demo" / "teacher_model.py"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty module `mine` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path / "mine.py"


def test_names_of_functions_and_of_configurations() -> None:
    assert is_plugin("mine:make") and is_plugin("package.mine:make")
    assert not any(map(is_plugin, ("config.py", "centerpoint_pillar02", "C:\\config.py", "a/b.py:make")))


def test_the_documented_teacher_is_dumped(made_frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS)
    teacher = make_teacher("own_teacher:make_teacher", None, "cpu")
    config = make_config(layers={"head": CodecSpec()}, workers=1)
    dump(config, made_frames, teacher, tmp_path / "a.zarr")
    cache = TeacherCache(tmp_path / "a.zarr")
    assert (cache.spec.teacher.name, cache.spec.teacher.weights) == ("own", "random")
    points = load_points(made_frames[0], teacher.points)
    inside = (np.abs(points[:, :2]) < 16).all(axis=1)
    cells = np.unique(np.floor((points[inside, :2] + 16) / 0.4).astype(int), axis=0)
    assert cache[made_frames.tokens[0]].canvas_mask[0].sum() == pytest.approx(len(cells), abs=3)
    torch.save({"model_state": teacher.network.state_dict()}, tmp_path / "w.pth")
    loaded = make_teacher("own_teacher:make_teacher", tmp_path / "w.pth", "cpu")
    assert loaded.identity.weights_sha256 == teacher.identity.weights_sha256


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "mine", r"not named as a function of a module; got mine; expected module:function"),
        ("import nowhere", "mine:make", r"cannot be imported \(mine:make\); got ModuleNotFoundError: .*nowhere"),
        ("def other(): ...", "mine:make", r"has no such function \(mine:make\); got other; expected make"),
    ],
)
def test_functions_that_cannot_be_imported(text: str, name: str, said: str, module: Path) -> None:
    module.write_text(text)
    with pytest.raises(TeacherError, match=said):
        imported(name, "the teacher")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make(checkpoint, device): return 1 / 0", r"factory failed \(mine:make\(None, 'cpu'\)\); got Zero"),
        ("def make(): ...", r"factory failed .*got TypeError.*expected a function of \(checkpoint, device\)"),
        ("def make(checkpoint, device): return 3", "made no teacher .*got int without identity, points"),
    ],
)  # fmt: skip
def test_factories_that_make_no_teacher(text: str, said: str, module: Path) -> None:
    module.write_text(text)
    with pytest.raises(TeacherError, match=said):
        make_teacher("mine:make", None, "cpu")


HOOK = "import numpy as np\ndef above(frame, points):\n    return points[points[:, 2] > {z}]\n"


def test_a_points_hook_is_applied_in_workers_and_recorded(module: Path, tmp_path: Path) -> None:
    module.write_text(HOOK.format(z=0))
    frames = SmallFrames(root=tmp_path / "points", count=4)
    config = make_config(points="mine:above", workers=1)
    dump(config, frames, SmallTeacher(), tmp_path / "a.zarr")
    cache = TeacherCache(tmp_path / "a.zarr")
    assert cache.spec.points.hook == "mine:above"
    points = load_points(frames[0], SmallTeacher().points)
    above = points[points[:, 2] > 0]
    np.testing.assert_array_equal(teacher_points(frames[0], cache.spec.points), above)
    inside = (np.abs(above[:, 0]) < 8) & (np.abs(above[:, 1]) < 6)
    cells = np.unique(np.floor(above[inside, :2]).astype(int), axis=0)
    assert cache[frames.tokens[0]].canvas_mask[0].sum() == len(cells)
    without = dump(make_config(), frames, SmallTeacher(), tmp_path / "b.zarr")
    assert without.sealed
    assert TeacherCache(tmp_path / "b.zarr").spec.fingerprint != cache.spec.fingerprint


def test_a_pillar_teacher_of_painted_points(module: Path, made_frames: Frames, tmp_path: Path) -> None:
    """Two more columns than the five of the sweeps, which the configuration's in_channels counts."""
    pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")
    from cache.teacher.mmdet3d import load_teacher

    module.write_text(
        "import numpy as np\n"
        "def paint(frame, points):\n"
        "    return np.concatenate([points, np.full((len(points), 2), 0.5, np.float32)], axis=1)\n"
    )
    model = tmp_path / "painted.py"
    model.write_text(f"_base_ = [{str(DEMO)!r}]\nmodel = dict(pts_voxel_encoder=dict(in_channels=7))\n")
    teacher = load_teacher(str(model), None, hook="mine:paint")
    config = make_config(teacher=str(model), layers={"head": CodecSpec()}, points="mine:paint", workers=0)
    dump(config, made_frames, teacher, tmp_path / "a.zarr")
    assert TeacherCache(tmp_path / "a.zarr").spec.points.hook == "mine:paint"
    unpainted = load_points(made_frames[0], teacher.points)
    with pytest.raises(
        TeacherError, match=r"other columns than the network .*points hook mine:paint\); got 5; expected 7"
    ):
        teacher.prepare(TeacherInput.of_points(unpainted))


def test_another_hook_of_that_name_is_another_teacher(module: Path) -> None:
    module.write_text(HOOK.format(z=0))
    first = with_hook(PointPipeline(), "mine:above").hook_sha256
    module.write_text(HOOK.format(z=1))
    assert with_hook(PointPipeline(), "mine:above").hook_sha256 != first
    assert with_hook(PointPipeline(), None) == PointPipeline()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", r"points hook failed \(mine:make\); got ZeroDivisionError"),
        ("None", "returned no points .*got NoneType; expected finite float32"),
        ("points.astype('float64')", r"got float64 \(2, 5\)"),
        ("points[:, :2]", r"got float32 \(2, 2\)"),
        ("points * np.float32('nan')", r"got float32 \(2, 5\), not all finite"),
    ],
)
def test_what_a_hook_returns_is_checked(body: str, said: str, module: Path, made_frames: Frames) -> None:
    module.write_text(f"import numpy as np\ndef make(frame, points):\n    return {body}\n")
    frame: Frame = made_frames[0]
    with pytest.raises(TeacherError, match=said):
        PointsHook(name="mine:make")(frame, np.ones((2, 5), np.float32))
