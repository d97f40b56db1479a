"""Detections -> the official nuScenes detection metrics."""

import json
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from pyquaternion import Quaternion

from cache.errors import DataError
from cache.frames import Frame, Frames
from cache.reader import TeacherCache
from cache.spec import CLASSES
from student.head import Detections, decode

MOVING_MPS = 0.2
"""Above this speed an object counts as moving when its attribute is chosen, as in mmdet3d."""

MAX_BOXES = 500
"""nuScenes accepts no more for one sample."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """nuScenes' detection metrics: mAP and NDS in 0 .. 1 (higher is better), the five mean errors (lower is better)."""

    mean_ap: float
    nds: float
    translation_error_m: float
    scale_error: float
    orientation_error_rad: float
    velocity_error_mps: float
    attribute_error: float
    class_ap: dict[str, float]


def evaluate(
    detections: Iterable[tuple[str, Detections]],
    frames: Frames,
    out: Path,
    sensor: Literal["camera", "lidar"] = "camera",
) -> Metrics:
    """Run the devkit's DetectionEval (configuration detection_cvpr_2019).

    Args:
        detections: token and detections, one for each frame of the split.
        frames: the frames of exactly one split.
        out: folder for results_nusc.json and the devkit's own metrics_summary.json and metrics_details.json.
        sensor: what the detector looked at, as the submission format records it.

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
    modalities = ("camera", "lidar", "radar", "map", "external")
    meta = {f"use_{modality}": modality == sensor for modality in modalities}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results_nusc.json"
    path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")
    (split,) = frames.splits
    rules = config_factory("detection_cvpr_2019")
    official = DetectionEval(frames.tables, rules, str(path), split, output_dir=str(out), verbose=False)
    with (out / "metrics.txt").open("w") as printed, redirect_stdout(printed):
        summary = official.main(render_curves=False)
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
    )


def teacher_detections(cache: TeacherCache, tokens: Iterable[str]) -> Iterable[tuple[str, Detections]]:
    """The teacher's boxes from the cache alone: its stored heatmaps and head maps, decoded as its config says.

    Raises:
        NotCachedError: a token or the head maps were not dumped.
    """
    teacher = cache.spec.teacher
    for token in tokens:
        batch = cache.read((token,), layers=(), head_maps=True)
        maps = {name: value.float() for name, value in batch.head_maps.items()}
        heatmap = batch.heatmap.float() / 255
        (found,) = decode(heatmap, maps, cache.spec.heatmap_grid, teacher.tasks, teacher.decoding)
        yield token, found


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
