"""The thirteen nuScenes tables of a made-up world."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from demo.world import lidar
from demo.world.camera import CAMERAS
from demo.world.config import WorldConfig
from demo.world.scene import Scene
from demo.world.sensor_files import Observation, SensorFile, sensor_files

Record = dict[str, Any]
Tables = dict[str, list[Record]]

ATTRIBUTES = (
    "cycle.with_rider", "cycle.without_rider", "pedestrian.moving", "pedestrian.sitting_lying_down",
    "pedestrian.standing", "vehicle.moving", "vehicle.parked", "vehicle.stopped",
)  # fmt: skip
VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")
CATEGORIES = (
    "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
)  # fmt: skip
_LOG = {"vehicle": "demo", "date_captured": "2018-07-24", "location": "made-up"}
_MAP = {"category": "semantic_prior"}
"""Fields with the same value in all scenes."""


def build_tables(world: WorldConfig, scenes: Sequence[Scene], observations: Sequence[Sequence[Observation]]) -> Tables:
    """All tables by name; `observations` has one item for each key frame of each scene."""
    tables = _common_tables(world)
    for scene, observed in zip(scenes, observations, strict=True):
        for name, records in _scene_tables(world, scene, observed).items():
            tables.setdefault(name, []).extend(records)
    return tables


def map_file(scene: Scene) -> str:
    """The path of a scene's map within the data root."""
    return f"maps/{scene.name}.png"


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _named(table: str, name: str) -> Record:
    return {"token": _token(table, name), "name": name, "description": ""}


def _chain(records: Sequence[Record]) -> list[Record]:
    """Fill the fields `prev` and `next` of consecutive records; they are empty at the ends."""
    tokens = ["", *(record["token"] for record in records), ""]
    links = zip(records, tokens, tokens[2:], strict=False)
    return [record | {"prev": before, "next": after} for record, before, after in links]


def _yaw_quaternion(yaw_rad: float) -> list[float]:
    """(w, x, y, z) of a rotation about z."""
    return [float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2))]


def _common_tables(world: WorldConfig) -> Tables:
    mounts: list[Any] = [(lidar.CHANNEL, lidar.POSITION_M, _yaw_quaternion(np.radians(lidar.YAW_DEG)), [])]
    for camera in CAMERAS:
        rotation = Quaternion(matrix=camera.rotation).elements.tolist()
        mounts.append((camera.name, camera.position_m, rotation, camera.intrinsics(world.image_size).tolist()))
    return {
        "category": [_named("category", name) for name in CATEGORIES],
        "attribute": [_named("attribute", name) for name in ATTRIBUTES],
        "visibility": [
            {"token": str(number), "level": level, "description": f"{level[1:]} % of the object's pixels are visible"}
            for number, level in enumerate(VISIBILITIES, start=1)
        ],
        "sensor": [
            {"token": _token("sensor", channel), "channel": channel, "modality": "camera" if intrinsics else "lidar"}
            for channel, _, _, intrinsics in mounts
        ],
        "calibrated_sensor": [
            {
                "token": _token("calibrated_sensor", channel),
                "sensor_token": _token("sensor", channel),
                "translation": list(position_m),
                "rotation": rotation,
                "camera_intrinsic": intrinsics,
            }
            for channel, position_m, rotation, intrinsics in mounts
        ],
    }


def _scene_tables(world: WorldConfig, scene: Scene, observations: Sequence[Observation]) -> Tables:
    files = [file for frame in range(world.key_frames) for file in sensor_files(scene, frame, world.past_sweeps)]
    tracks = [_track(scene, actor, observations) for actor in range(len(scene.actors))]
    name, log = scene.name, _token("log", scene.name)
    return {
        "log": [{"token": log, "logfile": f"demo-{name}", **_LOG}],
        "map": [{"token": _token("map", name), "log_tokens": [log], **_MAP, "filename": map_file(scene)}],
        "scene": [
            {
                "token": _token("scene", name),
                "log_token": log,
                "nbr_samples": world.key_frames,
                "first_sample_token": _token("sample", name, 0),
                "last_sample_token": _token("sample", name, world.key_frames - 1),
                "name": name,
                "description": "made up, with a name of nuScenes mini" if world.names == "mini" else "made up",
            }
        ],
        "sample": _chain([_sample(file) for file in files if file.is_lidar and file.is_key]),
        "sample_data": [
            record
            for channel in dict.fromkeys(file.channel for file in files)
            for record in _chain([_sample_data(world, file) for file in files if file.channel == channel])
        ],
        "ego_pose": [_ego_pose(file) for file in files],
        "instance": [_instance(scene, actor, track) for actor, track in enumerate(tracks) if track],
        "sample_annotation": [record for track in tracks for record in track],
    }


def _sample(sweep: SensorFile) -> Record:
    name, scene = sweep.scene.name, _token("scene", sweep.scene.name)
    return {
        "token": _token("sample", name, sweep.frame),
        "timestamp": sweep.timestamp_us,
        "prev": "",
        "next": "",
        "scene_token": scene,
    }


def _ego_pose(file: SensorFile) -> Record:
    x, y, yaw = file.scene.ego_pose(file.time_s)
    rotation, translation = _yaw_quaternion(yaw), [x, y, 0.0]
    return {
        "token": _token("ego_pose", file.path),
        "timestamp": file.timestamp_us,
        "rotation": rotation,
        "translation": translation,
    }


def _sample_data(world: WorldConfig, file: SensorFile) -> Record:
    height, width = (0, 0) if file.is_lidar else world.image_size
    return {
        "token": _token("sample_data", file.path),
        "sample_token": _token("sample", file.scene.name, file.frame),
        "ego_pose_token": _token("ego_pose", file.path),
        "calibrated_sensor_token": _token("calibrated_sensor", file.channel),
        "timestamp": file.timestamp_us,
        "fileformat": "pcd" if file.is_lidar else "jpg",
        "is_key_frame": file.is_key,
        "height": height,
        "width": width,
        "filename": file.path,
        "prev": "",
        "next": "",
    }


def _track(scene: Scene, number: int, observations: Sequence[Observation]) -> list[Record]:
    """The annotations of an actor at the key frames where it is in range; none for scenery."""
    if not scene.actors[number].kind.name:
        return []
    in_range = [(frame, observed) for frame, observed in enumerate(observations) if observed.in_range[number]]
    return _chain([_annotation(scene, number, frame, observed) for frame, observed in in_range])


def _annotation(scene: Scene, number: int, frame: int, observed: Observation) -> Record:
    actor = scene.actors[number]
    (length, width, height), (x, y, yaw) = actor.box_m, observed.poses[number].tolist()
    return {
        "token": _token("sample_annotation", scene.name, number, frame),
        "sample_token": _token("sample", scene.name, frame),
        "instance_token": _token("instance", scene.name, number),
        "visibility_token": observed.visibility(number),
        "attribute_tokens": [_token("attribute", actor.attribute)] if actor.attribute else [],
        "translation": [x, y, height / 2],
        "size": [width, length, height],
        "rotation": _yaw_quaternion(yaw),
        "prev": "",
        "next": "",
        "num_lidar_pts": int(observed.points[number]),
        "num_radar_pts": 0,
    }


def _instance(scene: Scene, number: int, track: Sequence[Record]) -> Record:
    return {
        "token": _token("instance", scene.name, number),
        "category_token": _token("category", scene.actors[number].kind.category),
        "nbr_annotations": len(track),
        "first_annotation_token": track[0]["token"],
        "last_annotation_token": track[-1]["token"],
    }
