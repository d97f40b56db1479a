import json
from pathlib import Path

import pytest

from cache.config import load_yaml
from cache.errors import ConfigError, OfflineDistillError
from demo.pipeline import ALONE, Step, groups, main, run, steps
from demo.report import Cost, table
from demo.world.config import WorldConfig
from student.config.student import StudentConfig

ROOT = Path(__file__).parents[2]


def test_the_table_holds_what_was_measured(tmp_path: Path) -> None:
    for name, mean_ap in (("teacher", 0.5), ("student", 0.125), ("distilled", 0.25)):
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        metrics = {"mean_ap": mean_ap, "nd_score": mean_ap / 2}
        (folder / "evaluation" / "metrics_summary.json").write_text(json.dumps(metrics))
        (folder / "summary.json").write_text(json.dumps({"seconds_per_step": 0.75}))
    log = tmp_path / "teacher" / "run" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"time": 0.2}\n{"time": 0.4}\n{"time": 0.3}\n')
    (tmp_path / "teacher.zarr").mkdir()
    (tmp_path / "teacher.zarr" / "shard").write_bytes(bytes(2_500_000))
    costs = {name: Cost(seconds=90, peak_memory_mb=1234) for name in ("teacher", "student", "distilled")}
    text = table(tmp_path, costs)
    assert "| LiDAR teacher | 0.500 | 0.250 | 0.30 | 1,234 MB |" in text
    assert "| camera student, distilled | 0.250 | 0.125 | 0.75 | 1,234 MB |" in text
    assert "Store: 2.5 MB. Minutes: teacher 1.5, student 1.5, distilled 1.5." in text


def test_both_students_are_trained_alike(tmp_path: Path) -> None:
    alone, distilled = (step.arguments for step in steps(tmp_path) if step.name in ("student", "distilled"))
    assert set(alone) - set(distilled) == {*ALONE, tmp_path / "student"}
    assert set(distilled) - set(alone) == {"--cache", tmp_path / "teacher.zarr", tmp_path / "distilled"}
    configs = ROOT / "configs" / "demo"
    world, config = load_yaml(configs / "world.yaml", WorldConfig), load_yaml(configs / "student.yaml", StudentConfig)
    scenes = {name: last - first for name, first, last in world.parts}
    seen = scenes["made_labelled"] + scenes["made_unlabelled"]
    without_teacher = load_yaml(configs / "student.yaml", StudentConfig, ALONE)
    assert without_teacher.training.epochs * scenes["made_labelled"] == config.training.epochs * seen


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="the folder is not a demo's"):
        main(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_steps_run_side_by_side_and_a_failure_ends_them(capfd: pytest.CaptureFixture[str]) -> None:
    costs = run([Step("one", "first", ["--help"]), Step("two", "second", ["--version"], beside=True)])
    assert set(costs) == {"one", "two"}
    with pytest.raises(
        OfflineDistillError, match=r"a step of the demo failed \(wrong\); got exit code \d+.*cli no-such"
    ):
        run([Step("wrong", "wrong", ["no-such"]), Step("long", "long", ["--help"])])


def test_the_students_train_beside_each_other(tmp_path: Path) -> None:
    names = [[step.name for step in group] for group in groups(steps(tmp_path))]
    assert names[1:] == [
        ["teacher", "first"],
        ["dump"],
        ["student", "distilled"],
        ["evaluate teacher", "evaluate student", "evaluate distilled"],
    ]
