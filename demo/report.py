"""The demo's report: a table and four pictures."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from cache.visualization import plot
from student.evaluation.results import read_losses, read_results
from student.visualization.plots import plot_losses
from student.visualization.scenes import plot_bev, plot_cameras


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Wall time and peak resident memory of one step of the demo."""

    seconds: float
    peak_memory_mb: float


def write_report(out: Path, costs: dict[str, Cost]) -> None:
    """Write table.md, bev.png, cameras.png, cached.png and losses.png into the demo's folder."""
    frames = Frames(root=out / "world", version="v1.0-mini", splits=("made_val",))
    frame = max(frames, key=lambda candidate: len(candidate.boxes))
    found = {name: read_results(out / name / "evaluation").boxes(frame) for name in ("teacher", "student", "distilled")}
    losses = {name: {} if name == "teacher" else read_losses(out / name) for name in found}
    figures = {
        "bev.png": plot_bev(frame, found, reach_m=16),
        "cameras.png": plot_cameras(frame, found["distilled"], "the distilled student's most confident boxes"),
        "cached.png": plot(TeacherCache(out / "teacher.zarr")[frame.token]),
        "losses.png": plot_losses(losses),
    }
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=100)
    (out / "table.md").write_text(table(out, costs), encoding="utf-8")


def table(out: Path, costs: dict[str, Cost]) -> str:
    """The Markdown table of metrics and costs."""
    labels = {"teacher": "LiDAR teacher", "student": "camera student alone", "distilled": "camera student, distilled"}
    steps_s = {name: _json(out / name / "summary.json")["seconds_per_step"] for name in ("student", "distilled")}
    steps_s["teacher"] = _teacher_step_s(out / "teacher")
    lines = ["| | mAP | NDS | training, s a step | training, peak memory |", "|---|---|---|---|---|"]
    for name, label in labels.items():
        metrics = _json(out / name / "evaluation" / "metrics_summary.json")
        lines.append(
            f"| {label} | {metrics['mean_ap']:.3f} | {metrics['nd_score']:.3f} "
            f"| {steps_s[name]:.2f} | {costs[name].peak_memory_mb:,.0f} MB |"
        )
    store_mb = sum(file.stat().st_size for file in (out / "teacher.zarr").rglob("*") if file.is_file()) / 1e6
    minutes = ", ".join(f"{name} {cost.seconds / 60:.1f}" for name, cost in costs.items())
    lines += ["", f"Store: {store_mb:.1f} MB. Minutes: {minutes}."]
    return "\n".join(lines) + "\n"


def _teacher_step_s(folder: Path) -> float:
    """Median seconds a step, from mmengine's own log."""
    (log,) = folder.glob("*/vis_data/scalars.json")
    return statistics.median(json.loads(line)["time"] for line in log.read_text().splitlines() if '"time"' in line)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
