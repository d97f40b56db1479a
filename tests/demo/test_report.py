import json
from pathlib import Path

import pytest

from cache.errors import ConfigError
from demo.pipeline import main, steps
from demo.report import Cost, table


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
    assert alone[:4] == distilled[:4]
    assert set(alone) - set(distilled) == {"--set", "distill=null", tmp_path / "student"}


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="the folder is not a demo's"):
        main(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
