"""Real frames through every stage: a random teacher, its store, a student's step from it, both evaluations, pictures.

Two key frames of nuScenes under their official splits, and six frames of DDAD's sensors, whose scenes of three
consecutive frames take a student with an earlier frame.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from cache.nuscenes.frames import Frames
from demo.pipeline import sets

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parent.parent.parent / "shared"
CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
SETS = {
    "nuscenes-two-frames": ("v1.0-trainval", "train", "val", "bevdepth"),
    "ddad-six-frames": ("v1.0-mini", "mini_train", "mini_val", "bevdepth4d"),
}


def run(*arguments: str | Path) -> None:
    outcome = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.parametrize("name", SETS)
def test_real_frames_through_every_stage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed (make setup)")
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"{name} is not here: real data is no part of the project")
    version, train, val, detector = SETS[name]
    store, out = tmp_path / "teacher.zarr", tmp_path / "run"
    where = sets(f"version={version}", f"splits=[{train}, {val}]", "workers=0")
    run("dump-teacher", CONFIGS / "dump.yaml", "--data", root, "--random-weights", "--out", store, *where)
    data = (f"data.version={version}", f"data.train_split={train}", f"data.val_split={val}", "data.workers=0")
    settings = (
        f"detector.name={detector}",
        "data.unlabelled_split=null",
        "training.epochs=1",
        "training.batch_size=1",
        "training.precision=bf16-mixed",
    )
    student = sets(*data, *settings, "training.channels_last=true")
    run("train-student", CONFIGS / "student.yaml", "--data", root, "--cache", store, "--out", out, *student)
    frames = {split: len(Frames(root=root, version=version, splits=(split,))) for split in (train, val)}
    assert json.loads((out / "summary.json").read_text())["steps"] == frames[train]
    checkpoint, teacher = out / "checkpoints" / "last.ckpt", tmp_path / "teacher"
    run("evaluate", "--data", root, "--checkpoint", checkpoint, "--out", out / "evaluation", "--plots")
    run("evaluate", "--data", root, "--cache", store, "--split", val, "--out", teacher)
    for folder in (out / "evaluation", teacher):
        results = json.loads((folder / "results_nusc.json").read_text())["results"]
        assert len(results) == frames[val]
        assert any(results.values())
    assert len(list((out / "evaluation" / "plots").glob("boxes_*.png"))) == frames[val]
