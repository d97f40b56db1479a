"""Detections -> the official nuScenes detection metrics."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from pyquaternion import Quaternion

from cache.errors import DataError
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.loader import Loader
from cache.spec import CLASSES
from cache.store.reader import TeacherCache
from student.data.dataset import StudentDataset, collate
from student.evaluation.metrics import Metrics, remarks_on
from student.evaluation.teacher_boxes import teacher_detections
from student.evaluation.true_positives import true_positives, write_true_positives
from student.models.checkpoint import load_student
from student.models.decoding import Detections
from student.models.detectors import BevDetector
from student.visualization.plots import draw_evaluation

MOVING_MPS = 0.2
"""Above this speed an object counts as moving when its attribute is chosen, as in mmdet3d."""

MAX_BOXES = 500
"""nuScenes accepts no more for one sample."""


def evaluate(
    detections: Iterable[tuple[str, Detections]],
    frames: Frames,
    out: Path,
    sensor: Literal["camera", "lidar"] = "camera",
    plots: bool = False,
) -> Metrics:
    """Run the devkit's DetectionEval (configuration detection_cvpr_2019).

    Args:
        detections: token and detections, one for each frame of the split.
        frames: the frames of exactly one split.
        out: folder for results_nusc.json, true_positives.csv and the devkit's own metrics_summary.json and
            metrics_details.json; `student.evaluation.results` reads them back.
        sensor: what the detector looked at, as the submission format records it.
        plots: draw the evaluation into OUT/plots.

    Raises:
        DataError: the split has no annotations, a frame has no entry, or a detection is not finite.
    """
    if not frames.tables.sample_annotation:
        raise DataError(
            "the split has no annotations to evaluate against",
            where=f"{frames.version}, {', '.join(frames.splits)}",
            cure="Evaluate on a split with annotations, or send results to nuScenes' server",
        )
    results = {token: _to_nuscenes(frames[token], found) for token, found in detections}
    missing = [token for token in frames.tokens if token not in results]
    if missing:
        raise DataError("frames without detections", where=f"{len(missing)} of {len(frames)}", got=missing[0])
    meta = {f"use_{modality}": modality == sensor for modality in ("camera", "lidar", "radar", "map", "external")}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results_nusc.json"
    path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")
    metrics = _official_metrics(path, frames, out)
    if plots:
        draw_evaluation(out, frames)
    return metrics


def _official_metrics(results: Path, frames: Frames, out: Path) -> Metrics:
    """The devkit's evaluation of a submission; what it prints goes to metrics.txt."""
    (split,) = frames.splits
    rules = config_factory("detection_cvpr_2019")
    official = DetectionEval(frames.tables, rules, str(results), split, output_dir=str(out), verbose=False)
    with (out / "metrics.txt").open("w", encoding="utf-8") as printed, redirect_stdout(printed):
        summary = official.main(render_curves=False)
    matches = true_positives(official.gt_boxes, official.pred_boxes, rules.dist_th_tp)
    write_true_positives(matches, out / "true_positives.csv")
    errors = summary["tp_errors"]
    return Metrics(
        mean_ap=summary["mean_ap"],
        nds=summary["nd_score"],
        translation_error_m=errors["trans_err"],
        scale_error=errors["scale_err"],
        orientation_error_rad=errors["orient_err"],
        velocity_error_mps=errors["vel_err"],
        attribute_error=errors["attr_err"],
        class_ap=summary["mean_dist_aps"],
        remarks=remarks_on(*_errors_of_found(summary)),
    )


def _errors_of_found(summary: dict) -> tuple[float, float]:
    """Mean scale and orientation error over the classes that were found and have a heading.

    The devkit's own means count 1 for each class that was not found.
    """
    errors = [of for name, of in summary["label_tp_errors"].items() if summary["mean_dist_aps"][name] > 0]
    headed = [(of["scale_err"], of["orient_err"]) for of in errors if np.isfinite(of["orient_err"])]
    scale_error, orientation_error_rad = np.mean(headed, axis=0) if headed else (np.nan, np.nan)
    return float(scale_error), float(orientation_error_rad)


Progress = Callable[[int, int], None]
"""Called with (done, total) as samples are done."""


def evaluate_student(
    checkpoint: Path,
    root: Path,
    version: str | None,
    split: str | None,
    out: Path,
    progress: Progress,
    plots: bool = False,
) -> Metrics:
    """Evaluate a student's checkpoint; version and split are those of its configuration where they are None.

    Raises:
        DataError: the checkpoint, the data set or an image cannot be read.
    """
    detector, config = load_student(checkpoint)
    frames = Frames(
        root=root,
        version=version or config.data.version,
        splits=(split or config.data.val_split,),
        max_sweeps=0,
    )
    loader = Loader(
        StudentDataset(frames, config, times=detector.times),
        batch_size=config.training.batch_size,
        num_workers=config.data.workers,
        collate_fn=collate,
    )
    found = _watched(_student_detections(detector, loader), len(frames), progress)
    return evaluate(found, frames, out, plots=plots)


def evaluate_teacher(
    cache_path: Path,
    root: Path,
    version: str | None,
    split: str | None,
    out: Path,
    progress: Progress,
    plots: bool = False,
) -> Metrics:
    """Evaluate the teacher from the cache alone; version and (last) split are the store's where they are None.

    Raises:
        DataError: the data set cannot be read.
        StoreError: the store cannot, or lacks a frame of the split or the head's maps.
    """
    cache = TeacherCache(cache_path)
    data = cache.spec.data
    frames = Frames(root=root, version=version or data.version, splits=(split or data.splits[-1],), max_sweeps=0)
    found = _watched(teacher_detections(cache, frames.tokens), len(frames), progress)
    return evaluate(found, frames, out, "lidar", plots)


@torch.inference_mode()
def _student_detections(detector: BevDetector, loader: Loader) -> Iterator[tuple[str, Detections]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device)
    for batch in loader:
        yield from zip(batch.tokens, detector.detect(detector(batch.to(device))), strict=True)


def _watched(detections: Iterable[tuple[str, Detections]], total: int, progress: Progress) -> Iterator:
    for done, entry in enumerate(detections, start=1):
        yield entry
        progress(done, total)


def _to_nuscenes(frame: Frame, found: Detections) -> list[dict]:
    """nuScenes' submission format: global centre, width-length-height, quaternion, velocity, attribute."""
    boxes = found.boxes.double().cpu().numpy()
    if not np.isfinite(boxes).all():
        raise DataError("a detection is not finite", where=f"token {frame.token}", cure="Check the training for NaN")
    best = np.argsort(-found.scores.cpu().numpy(), kind="stable")[:MAX_BOXES]
    return [_box_to_nuscenes(frame, boxes[i], CLASSES[int(found.labels[i])], float(found.scores[i])) for i in best]


def _box_to_nuscenes(frame: Frame, box: Float[np.ndarray, "9"], name: str, score: float) -> dict:
    x, y, z, length, width, height, yaw_rad, vx, vy = box
    pose = frame.lidar_to_global
    rotation = Quaternion(matrix=pose[:3, :3], rtol=1e-5, atol=1e-5) * Quaternion(axis=(0, 0, 1), radians=yaw_rad)
    velocity = pose[:3, :3] @ (vx, vy, 0.0)
    return {
        "sample_token": frame.token,
        "translation": (pose[:3, :3] @ (x, y, z + height / 2) + pose[:3, 3]).tolist(),
        "size": [width, length, height],
        "rotation": rotation.elements.tolist(),
        "velocity": velocity[:2].tolist(),
        "detection_name": name,
        "detection_score": score,
        "attribute_name": attribute(name, float(np.hypot(vx, vy))),
    }


def attribute(name: str, speed_mps: float) -> str:
    """The likeliest attribute of a class at a speed: moving or not (mmdet3d's rule for nuScenes)."""
    moving = speed_mps > MOVING_MPS
    match name:
        case "car" | "truck" | "construction_vehicle" | "bus" | "trailer":
            standing = "vehicle.stopped" if name == "bus" else "vehicle.parked"
            return "vehicle.moving" if moving else standing
        case "bicycle" | "motorcycle":
            return "cycle.with_rider" if moving else "cycle.without_rider"
        case "pedestrian":
            return "pedestrian.moving" if moving else "pedestrian.standing"
        case _:
            return ""
