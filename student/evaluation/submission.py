"""Detections in nuScenes' submission format: global frame, attributes, at most MAX_BOXES a sample."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pyquaternion import Quaternion

from cache.errors import DataError
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.spec import CLASSES
from student.models.decoding import DIVERGED, Detections

RESULTS = "results_nusc.json"
"""Name of an evaluation's file of results."""

MOVING_MPS = 0.2
"""Above this speed an object gets the attribute of a moving one, as in mmdet3d."""

MAX_BOXES = 500
"""nuScenes' limit for one sample."""

Sensor = Literal["camera", "lidar"]


def write_submission(
    detections: Iterable[tuple[str, Detections]],
    frames: Frames,
    path: Path,
    sensor: Sensor = "camera",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the detections of frames as a file of results, as nuScenes' server takes it for the split `test`.

    Args:
        detections: token and detections, one for each frame.
        sensor: the detector's input, as the submission format records it.
        progress: called with (done, total) after each frame.

    Raises:
        DataError: a frame has no detections, or a detection is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # before the work, which a folder that cannot be made would waste
    results: dict[str, list[dict]] = {}
    for token, found in detections:
        results[token] = _sample_results(frames[token], found)
        if progress is not None:
            progress(len(results), len(frames))
    missing = [token for token in frames.tokens if token not in results]
    if missing:
        raise DataError(
            "frames have no detections",
            where=f"{len(missing)} of {len(frames)}",
            got=f"none for {missing[0]}",
            cure="Give every frame an entry, one of no boxes where nothing was found",
        )
    meta = {f"use_{modality}": modality == sensor for modality in ("camera", "lidar", "radar", "map", "external")}
    path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")


def _sample_results(frame: Frame, found: Detections) -> list[dict]:
    boxes = found.boxes.double().cpu().numpy()
    if not np.isfinite(boxes).all():
        raise DataError("a detection is not finite", where=f"token {frame.token}", cure=DIVERGED)
    best = np.argsort(-found.scores.cpu().numpy(), kind="stable")[:MAX_BOXES]
    return [_box_to_nuscenes(frame, boxes[i], CLASSES[int(found.labels[i])], float(found.scores[i])) for i in best]


def _box_to_nuscenes(frame: Frame, box: Float[np.ndarray, "9"], name: str, score: float) -> dict:
    """Global centre, (width, length, height), quaternion, velocity and attribute of one box."""
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
        "attribute_name": likely_attribute(name, float(np.hypot(vx, vy))),
    }


def likely_attribute(name: str, speed_mps: float) -> str:
    """The most frequent nuScenes attribute of a class at a speed (mmdet3d's rule)."""
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
