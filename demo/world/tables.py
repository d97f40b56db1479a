"""nuScenes' thirteen tables."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pyquaternion import Quaternion

from demo.world import lidar
from demo.world.camera import CAMERAS
from demo.world.config import WorldConfig
from demo.world.scene import Scene
from demo.world.sensor_files import Observation
from demo.world.shots import Shot, shots_of

Record = dict[str, Any]
Tables = dict[str, list[Record]]

ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")
CATEGORIES = (
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
)


def build_tables(world: WorldConfig, scenes: Sequence[Scene], observations: Sequence[Sequence[Observation]]) -> Tables:
    """All tables; `observations` has one for each key frame of each scene."""
    tables = _fixed_tables(world)
    for scene, seen in zip(scenes, observations, strict=True):
        for name, records in _scene_tables(world, scene, seen).items():
            tables.setdefault(name, []).extend(records)
    return tables


def map_file(scene: Scene) -> str:
    """The path of a scene's map within the data root."""
    return f"maps/{scene.name}.png"


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _turn(yaw_rad: float) -> list[float]:
    """The quaternion (w, x, y, z) of a turn about z."""
    return [float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2))]


def _fixed_tables(world: WorldConfig) -> Tables:
    channels = [lidar.CHANNEL, *(camera.name for camera in CAMERAS)]
    return {
        "category": [_named("category", name) for name in CATEGORIES],
        "attribute": [_named("attribute", name) for name in ATTRIBUTES],
        "visibility": [
            {"token": str(number), "level": level, "description": f"{level[1:]} % of the object's pixels are visible"}
            for number, level in enumerate(VISIBILITIES, start=1)
        ],
        "sensor": [
            {
                "token": _token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == lidar.CHANNEL else "camera",
            }
            for channel in channels
        ],
        "calibrated_sensor": list(_calibrations(world)),
    }


def _named(table: str, name: str) -> Record:
    return {"token": _token(table, name), "name": name, "description": ""}


def _calibrations(world: WorldConfig) -> Iterator[Record]:
    yield {
        "token": _token("calibrated_sensor", lidar.CHANNEL),
        "sensor_token": _token("sensor", lidar.CHANNEL),
        "translation": list(lidar.PLACE_M),
        "rotation": _turn(np.radians(lidar.YAW_DEG)),
        "camera_intrinsic": [],
    }
    for camera in CAMERAS:
        yield {
            "token": _token("calibrated_sensor", camera.name),
            "sensor_token": _token("sensor", camera.name),
            "translation": list(camera.place_m),
            "rotation": Quaternion(matrix=camera.rotation).elements.tolist(),
            "camera_intrinsic": camera.intrinsics(world.image_size).tolist(),
        }


def _scene_tables(world: WorldConfig, scene: Scene, seen: Sequence[Observation]) -> Tables:
    shots = [shot for frame in range(world.key_frames) for shot in shots_of(scene, frame, world.past_sweeps)]
    annotations = [list(_track(scene, actor, seen)) for actor in range(len(scene.actors))]
    return {
        "log": [
            {
                "token": _token("log", scene.name),
                "logfile": f"demo-{scene.name}",
                "vehicle": "demo",
                "date_captured": "2018-07-24",
                "location": "made-up",
            }
        ],
        "map": [
            {
                "token": _token("map", scene.name),
                "log_tokens": [_token("log", scene.name)],
                "category": "semantic_prior",
                "filename": map_file(scene),
            }
        ],
        "scene": [
            {
                "token": _token("scene", scene.name),
                "log_token": _token("log", scene.name),
                "nbr_samples": world.key_frames,
                "first_sample_token": _token("sample", scene.name, 0),
                "last_sample_token": _token("sample", scene.name, world.key_frames - 1),
                "name": scene.name,
                "description": "made up, with a name of nuScenes mini",
            }
        ],
        "sample": [_sample(scene, shot, world.key_frames) for shot in shots if shot.is_lidar and shot.is_key],
        "sample_data": list(_sample_data(world, shots)),
        "ego_pose": [_ego_pose(scene, shot) for shot in shots],
        "instance": [_instance(scene, actor, track) for actor, track in enumerate(annotations) if track],
        "sample_annotation": [record for track in annotations for record in track],
    }


def _sample(scene: Scene, shot: Shot, key_frames: int) -> Record:
    tokens = ["", *(_token("sample", scene.name, frame) for frame in range(key_frames)), ""]
    before, own, after = tokens[shot.frame : shot.frame + 3]
    return {
        "token": own,
        "timestamp": shot.timestamp_us,
        "prev": before,
        "next": after,
        "scene_token": _token("scene", scene.name),
    }


def _ego_pose(scene: Scene, shot: Shot) -> Record:
    x, y, yaw = scene.ego_pose(shot.time_s)
    return {
        "token": _token("ego_pose", shot.file),
        "timestamp": shot.timestamp_us,
        "rotation": _turn(yaw),
        "translation": [x, y, 0.0],
    }


def _sample_data(world: WorldConfig, shots: Sequence[Shot]) -> Iterator[Record]:
    for channel in dict.fromkeys(shot.channel for shot in shots):
        chain = [shot for shot in shots if shot.channel == channel]
        tokens = ["", *(_token("sample_data", shot.file) for shot in chain), ""]
        for shot, before, own, after in zip(chain, tokens, tokens[1:], tokens[2:], strict=False):
            height, width = (0, 0) if shot.is_lidar else world.image_size
            yield {
                "token": own,
                "sample_token": _token("sample", shot.scene, shot.frame),
                "ego_pose_token": _token("ego_pose", shot.file),
                "calibrated_sensor_token": _token("calibrated_sensor", channel),
                "timestamp": shot.timestamp_us,
                "fileformat": "pcd" if shot.is_lidar else "jpg",
                "is_key_frame": shot.is_key,
                "height": height,
                "width": width,
                "filename": shot.file,
                "prev": before,
                "next": after,
            }


def _track(scene: Scene, number: int, observations: Sequence[Observation]) -> Iterator[Record]:
    """The annotations of an actor at the key frames where it is in range; scenery has none."""
    actor = scene.actors[number]
    length, width, height = actor.box_m
    frames = [frame for frame, seen in enumerate(observations) if actor.kind.name and seen.in_range[number]]
    tokens = ["", *(_token("sample_annotation", scene.name, number, frame) for frame in frames), ""]
    for frame, before, own, after in zip(frames, tokens, tokens[1:], tokens[2:], strict=False):
        x, y, yaw = observations[frame].poses[number].tolist()
        yield {
            "token": own,
            "sample_token": _token("sample", scene.name, frame),
            "instance_token": _token("instance", scene.name, number),
            "visibility_token": observations[frame].visibility(number),
            "attribute_tokens": [_token("attribute", actor.attribute)] if actor.attribute else [],
            "translation": [x, y, height / 2],
            "size": [width, length, height],
            "rotation": _turn(yaw),
            "prev": before,
            "next": after,
            "num_lidar_pts": int(observations[frame].points[number]),
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
