"""Tables of the size of nuScenes v1.0-trainval: 850 scenes, 34,000 key frames, 2.6 M sample_data, 1.3 M annotations.

Made-up values under the official scenes' names, 2.6 GB of JSON; there are no sensors' files.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from nuscenes.utils.splits import train, val

from cache.nuscenes.frames import CAMERAS, LIDAR

KEY_FRAMES = 40
"""Of a scene."""

OBJECTS, STANDING = 76, 20
"""Of a scene, and those of them that are in every key frame; the others in 5 to 20."""

RADARS = tuple(f"RADAR_{place}" for place in ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT"))
CHANNELS = (LIDAR, *CAMERAS, *RADARS)
FILES = {channel: 10 if channel == LIDAR else 6 for channel in CHANNELS}
"""Of a channel from one key frame to the next."""

CATEGORIES = (
    "human.pedestrian.adult", "vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.trailer",
    "vehicle.construction", "vehicle.motorcycle", "vehicle.bicycle", "movable_object.barrier",
    "movable_object.trafficcone",
)  # fmt: skip

START_US, STEP_US, SCENE_US = 1_533_151_603_547_590, 500_000, 30_000_000


def make_tables(root: Path, scenes: int = len(train) + len(val)) -> None:
    """Write v1.0-trainval into a folder."""
    folder = root / "v1.0-trainval"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "map.png").touch()
    names = (train + val)[:scenes]
    tables: dict[str, Iterable[dict]] = {
        "category": ({"token": _token(1, i), "name": name, "description": ""} for i, name in enumerate(CATEGORIES)),
        "attribute": [{"token": _token(2), "name": "vehicle.moving", "description": ""}],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": (
            {"token": _token(3, i), "channel": name, "modality": _modality(name)} for i, name in enumerate(CHANNELS)
        ),
        "map": [{"token": _token(4), "log_tokens": [_token(5)], "category": "", "filename": "map.png"}],
        "log": [{"token": _token(5), "logfile": "", "vehicle": "", "date_captured": "", "location": ""}],
        "scene": (_scene(s, name) for s, name in enumerate(names)),
        "sample": (row for s in range(scenes) for row in _samples(s)),
        "calibrated_sensor": (row for s in range(scenes) for row in _calibrations(s)),
        "sample_data": (row for s in range(scenes) for row in _files(s)),
        "ego_pose": (row for s in range(scenes) for row in _poses(s)),
        "instance": (row for s in range(scenes) for row in _instances(s)),
        "sample_annotation": (row for s in range(scenes) for row in _annotations(s)),
    }
    for name, rows in tables.items():
        with (folder / f"{name}.json").open("w", encoding="utf-8") as file:
            separator = "[\n"
            for row in rows:
                file.write(separator + json.dumps(row))
                separator = ",\n"
            file.write("\n]")


def _token(kind: int, *numbers: int) -> str:
    return f"{kind:02x}{''.join(f'{number:06x}' for number in numbers)}".ljust(32, "0")


def _neighbours(kind: int, numbers: tuple[int, ...], last: int, first: int = 0) -> dict[str, str]:
    """prev and next of the last of some numbers."""
    *of, i = numbers
    return {
        "prev": _token(kind, *of, i - 1) if i > first else "",
        "next": _token(kind, *of, i + 1) if i < last else "",
    }


def _modality(channel: str) -> str:
    return {"LIDAR": "lidar", "CAM": "camera", "RADAR": "radar"}[channel.split("_")[0]]


def _scene(s: int, name: str) -> dict:
    first, last = _token(7, s, 0), _token(7, s, KEY_FRAMES - 1)
    return {
        "token": _token(8, s), "log_token": _token(5), "nbr_samples": KEY_FRAMES, "first_sample_token": first,
        "last_sample_token": last, "name": name, "description": "",
    }  # fmt: skip


def _time_us(s: int, k: int) -> int:
    return START_US + SCENE_US * s + STEP_US * k


def _samples(s: int) -> Iterator[dict]:
    for k in range(KEY_FRAMES):
        around = _neighbours(7, (s, k), KEY_FRAMES - 1)
        yield {"token": _token(7, s, k), "timestamp": _time_us(s, k), "scene_token": _token(8, s), **around}


def _calibrations(s: int) -> Iterator[dict]:
    for i, channel in enumerate(CHANNELS):
        intrinsics = [[1266.4, 0.0, 816.2], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]
        yield {
            "token": _token(6, s, i), "sensor_token": _token(3, i), "translation": [0.943713, 0.0, 1.84023],
            "rotation": [0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817],
            "camera_intrinsic": intrinsics if _modality(channel) == "camera" else [],
        }  # fmt: skip


def _files(s: int) -> Iterator[dict]:
    for i, channel in enumerate(CHANNELS):
        count = FILES[channel] * KEY_FRAMES
        ending, (height, width) = ("jpg", (900, 1600)) if _modality(channel) == "camera" else ("pcd.bin", (0, 0))
        for q in range(count):
            k, between = divmod(q, FILES[channel])
            time_us = _time_us(s, k) + STEP_US // FILES[channel] * between
            folder = "sweeps" if between else "samples"
            yield {
                "token": _token(10, s, i, q), "sample_token": _token(7, s, k), "ego_pose_token": _token(9, s, i, q),
                "calibrated_sensor_token": _token(6, s, i), "timestamp": time_us, "fileformat": ending[:3],
                "is_key_frame": not between, "height": height, "width": width,
                "filename": f"{folder}/{channel}/n015-2018-07-18-11-07-57+0800__{channel}__{time_us}.{ending}",
                **_neighbours(10, (s, i, q), count - 1),
            }  # fmt: skip


def _poses(s: int) -> Iterator[dict]:
    for i, channel in enumerate(CHANNELS):
        for q in range(FILES[channel] * KEY_FRAMES):
            yield {
                "token": _token(9, s, i, q), "timestamp": _time_us(s, 0) + q,
                "rotation": [0.5720320396729045, -0.0016977771610471074, 0.011798001930183783, -0.8201446642457809],
                "translation": [411.3039349319818 + 5 * q / FILES[channel], 1180.8903791765097, 0.0],
            }  # fmt: skip


def _lives(s: int) -> list[int]:
    """The key frames of each object of a scene; all begin at the first."""
    lengths = np.random.default_rng(s).integers(5, 21, OBJECTS - STANDING)
    return [KEY_FRAMES] * STANDING + lengths.tolist()


def _instances(s: int) -> Iterator[dict]:
    for a, count in enumerate(_lives(s)):
        yield {
            "token": _token(11, s, a), "category_token": _token(1, a % len(CATEGORIES)), "nbr_annotations": count,
            "first_annotation_token": _token(12, s, a, 0), "last_annotation_token": _token(12, s, a, count - 1),
        }  # fmt: skip


def _annotations(s: int) -> Iterator[dict]:
    rng = np.random.default_rng((s, 1))
    for a, count in enumerate(_lives(s)):
        x, y = rng.uniform(-40, 40, 2).tolist()
        for k in range(count):
            yield {
                "token": _token(12, s, a, k), "sample_token": _token(7, s, k), "instance_token": _token(11, s, a),
                "visibility_token": "4", "attribute_tokens": [_token(2)],
                "translation": [411.3 + x + 2.71 * k, 1180.9 + y - 1.37 * k, 0.93], "size": [1.957, 4.621, 1.729],
                "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
                **_neighbours(12, (s, a, k), count - 1), "num_lidar_pts": 12, "num_radar_pts": 1,
            }  # fmt: skip
