"""Tiny nuScenes tables with known numbers."""

import json
from pathlib import Path

import numpy as np
from pyquaternion import Quaternion

from cache.nuscenes.frames import CAMERAS

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
