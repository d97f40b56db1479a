"""What the devkit makes of tables."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from cache.nuscenes.frame import Camera, Frame, Sweep
from cache.nuscenes.frames import CAMERAS
from cache.spec import CLASSES


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
