"""What the demo leaves for a person to look at: one table and four pictures."""

import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from cache.frames import Camera, Frame, Frames, box_in_lidar
from cache.points import load_points
from cache.reader import TeacherCache
from cache.spec import PointPipeline
from student.nms import footprint_corners

COLOURS = {"ground truth": "#1b9e3e", "teacher": "#1f5fd0", "student": "#e08a00", "distilled": "#d01c5b"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one step of the demo took: wall time, and the resident memory of its process at its highest."""

    seconds: float
    peak_memory_mb: float


def write_report(out: Path, costs: dict[str, Cost]) -> None:
    """Write table.md, bev.png, cameras.png, cached.png and losses.png into the demo's folder."""
    frames = Frames(root=out / "world", version="v1.0-mini", splits=("mini_val",))
    frame = max(frames, key=lambda candidate: len(candidate.boxes))
    found = {name: _detections(out / name, frame) for name in ("teacher", "student", "distilled")}
    (out / "table.md").write_text(table(out, costs), encoding="utf-8")
    _draw_bev(frame, found, out / "bev.png")
    _draw_cameras(frame, found["distilled"], out / "cameras.png")
    _draw_losses(out, out / "losses.png")
    TeacherCache(out / "teacher.zarr")[frame.token].plot().savefig(out / "cached.png", dpi=110)


def table(out: Path, costs: dict[str, Cost]) -> str:
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
    lines += ["", f"Store: {store_mb:.1f} MB. Minutes: " + ", ".join(
        f"{name} {cost.seconds / 60:.1f}" for name, cost in costs.items()
    ) + "."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _teacher_step_s(folder: Path) -> float:
    """Median seconds a step, from mmengine's own log."""
    (log,) = folder.glob("*/vis_data/scalars.json")
    return statistics.median(json.loads(line)["time"] for line in log.read_text().splitlines() if '"time"' in line)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _detections(folder: Path, frame: Frame) -> Float[np.ndarray, "M 7"]:
    """x, y, z (bottom), dx, dy, dz, yaw_rad in the LiDAR frame, from results_nusc.json.

    The surest ones, as many as there are objects: how sure a detector is varies with how long it was trained.
    """
    results = _json(folder / "evaluation" / "results_nusc.json")["results"][frame.token]
    results.sort(key=lambda result: -result["detection_score"])
    to_lidar = np.linalg.inv(frame.lidar_to_global)
    shown = results[: len(frame.boxes)]
    boxes = [box_in_lidar(result, np.array([*result["velocity"], 0.0]), to_lidar)[:7] for result in shown]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 7)


def corners_m(boxes: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M 8 3"]:
    """The corners of boxes: the bottom's four around, the front two first, then the top's four."""
    around = np.roll(footprint_corners(boxes[:, [0, 1, 3, 4, 6]]), 1, axis=1)
    bottom, top = boxes[:, 2], boxes[:, 2] + boxes[:, 5]
    z = np.stack([bottom, top], axis=1).repeat(4, axis=1)
    return np.concatenate([np.tile(around, (1, 2, 1)), z[..., None]], axis=-1)


def _draw_bev(frame: Frame, found: dict[str, Float[np.ndarray, "M 7"]], path: Path) -> None:
    """Ground truth under the boxes of each detector, over the points of one frame."""
    points = load_points(frame, PointPipeline(past_sweeps=0, pad_empty_sweeps=False))
    picture, axes = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained", sharex=True, sharey=True)
    for axis, (name, boxes) in zip(axes, found.items(), strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=0.4, c="#9a9a9a", linewidths=0)
        _outline(axis, frame.boxes, "ground truth")
        _outline(axis, boxes, name)
        axis.set(aspect="equal", xlim=(-24, 24), ylim=(-24, 24), xlabel="x (m)", title=name)
        axis.legend(loc="upper right")
    axes[0].set_ylabel("y (m)")
    picture.savefig(path, dpi=110)
    plt.close(picture)


def _outline(axis: Axes, boxes: Float[np.ndarray, "M D"], name: str) -> None:
    for index, corners in enumerate(corners_m(boxes)[:, :4, :2]):
        loop = np.concatenate([corners, corners[:1]])
        axis.plot(*loop.T, color=COLOURS[name], linewidth=1.3, label=name if index == 0 else None)
        nose = np.stack([corners.mean(axis=0), corners[:2].mean(axis=0)])
        axis.plot(*nose.T, color=COLOURS[name], linewidth=1.3)


def _draw_cameras(frame: Frame, boxes: Float[np.ndarray, "M 7"], path: Path) -> None:
    """The six images with ground truth and the distilled student's boxes projected into them."""
    picture, axes = plt.subplots(2, 3, figsize=(15, 5.8), layout="constrained")
    for axis, camera in zip(axes.flat, frame.cameras, strict=True):
        axis.imshow(plt.imread(camera.path))
        for name, some in (("ground truth", frame.boxes), ("distilled", boxes)):
            _wireframes(axis, camera, some, COLOURS[name])
        height, width = camera.size
        axis.set(xlim=(0, width), ylim=(height, 0), title=camera.name)
        axis.axis("off")
    picture.suptitle("green: ground truth; red: what the distilled student is surest of")
    picture.savefig(path, dpi=100)
    plt.close(picture)


def _wireframes(axis: Axes, camera: Camera, boxes: Float[np.ndarray, "M D"], colour: str) -> None:
    to_camera = np.linalg.inv(camera.to_lidar)
    for corners in corners_m(boxes):
        seen = corners @ to_camera[:3, :3].T + to_camera[:3, 3]
        if (seen[:, 2] < 0.5).any():
            continue
        u, v = ((seen / seen[:, 2:]) @ camera.intrinsics.T)[:, :2].T
        for ring in ([0, 1, 2, 3, 0], [4, 5, 6, 7, 4], [0, 4], [1, 5], [2, 6], [3, 7]):
            axis.plot(u[ring], v[ring], color=colour, linewidth=1)


def _draw_losses(out: Path, path: Path) -> None:
    """Detection losses of both trainings on one axis, the distillation terms on the other."""
    picture, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for name in ("student", "distilled"):
        for term, values in _curves(out / name / "csv" / "metrics.csv").items():
            if term in ("loss/heatmap", "loss/boxes"):
                style = "-" if term == "loss/heatmap" else ":"
                left.plot(_smooth(values), style, color=COLOURS[name], label=f"{name}, {term.removeprefix('loss/')}")
            elif "distill" in term:
                right.plot(_smooth(values), label=term.removeprefix("loss/"))
    for axis, title in ((left, "detection losses"), (right, "distillation terms")):
        axis.set(title=title, xlabel="step", yscale="log")
        axis.legend()
    picture.savefig(path, dpi=110)
    plt.close(picture)


def _curves(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name.startswith("loss/")}


def _smooth(values: list[float], width: int = 9) -> Float[np.ndarray, "n"]:
    """Running mean, so that a curve can be read."""
    width = min(width, len(values))
    return np.convolve(values, np.ones(width) / width, mode="valid")
