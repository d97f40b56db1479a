"""Tiny nuScenes tables with known numbers, and what the devkit makes of tables."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from cache.nuscenes.frames import CAMERAS, Camera, Frame, Sweep
from cache.spec import CLASSES

Tables = dict[str, list[dict]]

QUARTER_TURN = list(Quaternion(axis=(0, 0, 1), degrees=90).elements)
NO_TURN = [1.0, 0.0, 0.0, 0.0]
CAMERA_AXES = list(Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])).elements)
"""x right, y down, z forward, of a camera that looks along the car's x."""


def make_tables() -> Tables:
    """Two key frames half a second apart, one rotation between them; the car, facing +y, drives 1 m along +y in each.

    The LiDAR sits 1 m before and 2 m above the rear axle, turned as the car. A car drives 10 m ahead at 2 m/s.
    """
    lidar = [
        sample_data("lidar0", "first", "LIDAR_TOP", "pose0", 0, prev=""),
        sample_data("lidar1", "second", "LIDAR_TOP", "pose1", 250_000, prev="lidar0", key=False),
        sample_data("lidar2", "second", "LIDAR_TOP", "pose2", 500_000, prev="lidar1"),
    ]
    images = [
        sample_data(f"{name} {sample}", sample, name, pose, time)
        for sample, pose, time in (("first", "pose0", 0), ("second", "pose2", 500_000))
        for name in CAMERAS
    ]
    return {
        "category": [
            {"token": name, "name": name}
            for name in ("vehicle.car", "human.pedestrian.adult", "animal", "movable_object.trafficcone")
        ],
        "attribute": [],
        "visibility": [],
        "instance": [
            {"token": "the car", "category_token": "vehicle.car"},
            {"token": "a cone", "category_token": "movable_object.trafficcone"},
            {"token": "unseen", "category_token": "human.pedestrian.adult"},
            {"token": "a dog", "category_token": "animal"},
        ],
        "sensor": [
            {"token": name, "channel": name, "modality": "lidar" if name == "LIDAR_TOP" else "camera"}
            for name in ("LIDAR_TOP", *CAMERAS)
        ],
        "calibrated_sensor": [
            {
                "token": name,
                "sensor_token": name,
                "translation": [1.0, 0.0, 2.0] if name == "LIDAR_TOP" else [1.5, 0.25, 1.5],
                "rotation": NO_TURN if name == "LIDAR_TOP" else CAMERA_AXES,
                "camera_intrinsic": [] if name == "LIDAR_TOP" else [[500, 0, 400], [0, 500, 225], [0, 0, 1]],
            }
            for name in ("LIDAR_TOP", *CAMERAS)
        ],
        "ego_pose": [
            {"token": f"pose{i}", "translation": [100.0, 200.0 + i, 0.0], "rotation": QUARTER_TURN} for i in range(3)
        ],
        "log": [],
        "scene": [{"token": "scene", "name": "scene-0061"}],
        "sample": [
            {"token": "first", "scene_token": "scene", "timestamp": 0, "prev": "", "next": "second"},
            {"token": "second", "scene_token": "scene", "timestamp": 500_000, "prev": "first", "next": ""},
        ],
        "sample_data": lidar + images,
        "sample_annotation": [
            annotation("car first", "first", "the car", (100, 211, 1), QUARTER_TURN, next="car second"),
            annotation("car second", "second", "the car", (100, 212, 1), QUARTER_TURN, prev="car first"),
            annotation("cone", "second", "a cone", (97, 203, 0.5), NO_TURN),
            annotation("person", "second", "unseen", (90, 210, 1), NO_TURN, lidar_points=0),
            annotation("dog", "second", "a dog", (100, 205, 0.5), NO_TURN),
        ],
        "map": [{"token": "map", "log_tokens": [], "category": "semantic_prior", "filename": "map.png"}],
    }  # fmt: skip


def sample_data(
    token: str, sample: str, sensor: str, pose: str, time_us: int, prev: str = "", key: bool = True
) -> dict:
    height, width = (0, 0) if sensor == "LIDAR_TOP" else (450, 800)
    return {
        "token": token, "sample_token": sample, "calibrated_sensor_token": sensor, "ego_pose_token": pose,
        "timestamp": time_us, "filename": f"{sensor}/{token}", "fileformat": "", "is_key_frame": key,
        "height": height, "width": width, "prev": prev, "next": "",
    }  # fmt: skip


def annotation(
    token: str,
    sample: str,
    instance: str,
    center: tuple[float, float, float],
    rotation: list[float],
    lidar_points: int = 5,
    prev: str = "",
    next: str = "",
) -> dict:
    return {
        "token": token, "sample_token": sample, "instance_token": instance, "visibility_token": "",
        "attribute_tokens": [], "translation": center, "size": [2.0, 4.0, 1.5], "rotation": rotation,
        "num_lidar_pts": lidar_points, "num_radar_pts": 0, "prev": prev, "next": next,
    }  # fmt: skip


def write_tables(root: Path, tables: Tables, version: str = "v1.0-mini") -> Path:
    """Write tables, over those that are there."""
    folder = root / version
    folder.mkdir(parents=True, exist_ok=True)
    (root / "map.png").touch()  # The devkit opens no tables without it.
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


def devkit_frame(nusc: NuScenes, token: str, max_sweeps: int = 9) -> Frame:
    """A frame built from the devkit's records one by one."""
    sample = nusc.get("sample", token)
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    global_to_lidar = np.linalg.inv(_ego_pose(nusc, lidar) @ _sensor_pose(nusc, lidar))
    chain = [lidar]
    while chain[-1]["prev"] and len(chain) <= max_sweeps:
        chain.append(nusc.get("sample_data", chain[-1]["prev"]))
    kept = [(box, label) for box, label in _labelled(nusc, sample) if label is not None]
    boxes = [_box(box, np.nan_to_num(nusc.box_velocity(box["token"])), global_to_lidar) for box, _ in kept]
    return Frame(
        token=token,
        scene=nusc.get("scene", sample["scene_token"])["name"],
        timestamp_us=sample["timestamp"],
        sweeps=tuple(
            Sweep(
                path=Path(nusc.dataroot) / data["filename"],
                to_key=global_to_lidar @ (_ego_pose(nusc, data) @ _sensor_pose(nusc, data)),
                lag_s=(lidar["timestamp"] - data["timestamp"]) * 1e-6,
            )
            for data in chain
        ),
        cameras=tuple(_camera(nusc, sample, name, global_to_lidar) for name in CAMERAS),
        boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 9),
        labels=np.asarray([label for _, label in kept], dtype=np.int64),
        lidar_to_ego=_sensor_pose(nusc, lidar),
        ego_to_global=_ego_pose(nusc, lidar),
        previous=sample["prev"] or None,
    )


def _camera(nusc: NuScenes, sample: dict, name: str, global_to_lidar: np.ndarray) -> Camera:
    data = nusc.get("sample_data", sample["data"][name])
    calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    return Camera(
        name=name,
        path=Path(nusc.dataroot) / data["filename"],
        intrinsics=np.asarray(calibration["camera_intrinsic"], dtype=np.float64),
        to_lidar=global_to_lidar @ _ego_pose(nusc, data) @ _sensor_pose(nusc, data),
        size=(data["height"], data["width"]),
    )


def _labelled(nusc: NuScenes, sample: dict) -> list[tuple[dict, int | None]]:
    found = []
    for token in sample["anns"]:
        box = nusc.get("sample_annotation", token)
        name = category_to_detection_name(box["category_name"])
        held = box["num_lidar_pts"] + box["num_radar_pts"] > 0
        found.append((box, CLASSES.index(name) if name and held else None))
    return found


def _sensor_pose(nusc: NuScenes, data: dict) -> np.ndarray:
    record = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def _ego_pose(nusc: NuScenes, data: dict) -> np.ndarray:
    record = nusc.get("ego_pose", data["ego_pose_token"])
    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def _box(record: dict, velocity: np.ndarray, global_to_lidar: np.ndarray) -> list[float]:
    rotation = global_to_lidar[:3, :3]
    center = rotation @ record["translation"] + global_to_lidar[:3, 3]
    width, length, height = record["size"]
    heading = rotation @ Quaternion(record["rotation"]).rotation_matrix[:, 0]
    moving = rotation @ velocity
    yaw_rad = float(np.arctan2(heading[1], heading[0]))
    return [*center[:2], center[2] - height / 2, length, width, height, yaw_rad, *moving[:2]]


def require_equal(ours: object, theirs: object, name: str = "frame") -> None:
    """Check two frames value by value, to the last digit."""
    if is_dataclass(ours):
        assert type(ours) is type(theirs)
        for field in fields(ours):
            require_equal(getattr(ours, field.name), getattr(theirs, field.name), f"{name}.{field.name}")
    elif isinstance(ours, np.ndarray):
        assert isinstance(theirs, np.ndarray)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    elif isinstance(ours, tuple):
        assert isinstance(theirs, tuple)
        assert len(ours) == len(theirs), name
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            require_equal(our, their, f"{name}[{i}]")
    else:
        assert (type(ours), ours) == (type(theirs), theirs), name
