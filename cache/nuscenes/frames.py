"""nuScenes tables -> frames: what both stages need to know about a key frame, with every path and pose resolved.

Frame of all geometry, unless a name says otherwise: the LIDAR_TOP sensor at the key frame's time.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from cache.errors import ConfigError, DataError
from cache.nuscenes.plausibility import numbers, require_boxes, require_older, require_poses
from cache.spec import CLASSES

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")

Matrix = Float[np.ndarray, "4 4"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One LiDAR rotation; `to_key` takes its points to the key frame's LiDAR, `lag_s` is its age in seconds."""

    path: Path
    to_key: Matrix
    lag_s: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One image; `to_lidar` takes camera coordinates (x right, y down, z forward) to the key frame's LiDAR."""

    name: str
    path: Path
    intrinsics: Float[np.ndarray, "3 3"]
    to_lidar: Matrix
    size: tuple[int, int]
    """(height, width) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A key frame ("sample" in nuScenes).

    boxes: x, y, z (bottom centre), dx (length), dy (width), dz (height) in metres, yaw_rad (counter-clockwise from
        +x: mmdet3d 1.x), vx, vy in m/s (0 where nuScenes knows none). Only boxes of the ten classes that hold a LiDAR
        or radar point; empty for a split without annotations.
    sweeps: the key frame's own rotation first, then older and older ones.
    previous: token of the key frame before this one in its scene.
    """

    token: str
    scene: str
    timestamp_us: int
    sweeps: tuple[Sweep, ...]
    cameras: tuple[Camera, ...]
    boxes: Float[np.ndarray, "M 9"]
    labels: Int[np.ndarray, "M"]
    lidar_to_ego: Matrix
    ego_to_global: Matrix
    previous: str | None

    @property
    def lidar_to_global(self) -> Matrix:
        """From the key frame's LiDAR to nuScenes' map frame."""
        return self.ego_to_global @ self.lidar_to_ego


@dataclass(frozen=True, kw_only=True)
class Frames(Sequence[Frame]):
    """The key frames of some splits, in the tables' order; `frames[3]` and `frames[token]` build one when asked.

    Raises:
        DataError: the data root, a table or a version is missing, or the splits hold no key frame.
        ConfigError: a split is not one of nuScenes'.
    """

    root: Path
    version: str
    splits: tuple[str, ...]
    max_sweeps: int = 9
    """Past LiDAR rotations that a frame lists beside its own."""
    tables: NuScenes = field(init=False, repr=False, compare=False)
    tokens: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "tables", open_tables(self.root, self.version))
        object.__setattr__(self, "tokens", _tokens_of_splits(self.tables, self.splits))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: int | str) -> Frame:  # type: ignore[override]
        token = self.tokens[key] if isinstance(key, int) else key
        sample = self._sample(token)
        lidar = self.tables.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar_to_ego, ego_to_global = self._sensor_to_ego(lidar), self._ego_to_global(lidar)
        global_to_lidar = np.linalg.inv(ego_to_global @ lidar_to_ego)
        boxes, labels = self._boxes(sample, global_to_lidar)
        return Frame(
            token=token,
            scene=self.tables.get("scene", sample["scene_token"])["name"],
            timestamp_us=sample["timestamp"],
            sweeps=tuple(self._sweeps(lidar, global_to_lidar)),
            cameras=tuple(self._camera(sample, name, global_to_lidar) for name in CAMERAS),
            boxes=boxes,
            labels=labels,
            lidar_to_ego=lidar_to_ego,
            ego_to_global=ego_to_global,
            previous=sample["prev"] or None,
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[token] for token in self.tokens)

    def labels(self, token: str) -> Int[np.ndarray, "M"]:
        """The labels of a frame's boxes, without building the frame."""
        return self._labels(self._sample(token))

    def of_splits(self, *splits: str) -> "Frames":
        """The key frames of other splits; the tables are shared.

        Raises:
            DataError, ConfigError: as for new frames.
        """
        others = copy(self)
        object.__setattr__(others, "splits", splits)
        object.__setattr__(others, "tokens", _tokens_of_splits(self.tables, splits))
        return others

    def _sample(self, token: str) -> dict:
        try:
            return self.tables.get("sample", token)
        except KeyError:
            raise DataError(
                "the tables hold no such key frame",
                where=f"{self.root}, {self.version}",
                got=token,
                cure="Check the token, or open the version that it belongs to",
            ) from None

    def _sensor_to_ego(self, data: dict) -> Matrix:
        return self._pose("calibrated_sensor", data["calibrated_sensor_token"])

    def _ego_to_global(self, data: dict) -> Matrix:
        return self._pose("ego_pose", data["ego_pose_token"])

    def _pose(self, table: str, token: str) -> Matrix:
        record, place = self.tables.get(table, token), self._place(table, token)
        translation = numbers(record["translation"], 3, f"{place}, translation")
        rotation = numbers(record["rotation"], 4, f"{place}, rotation")
        require_poses(translation[None], rotation[None], lambda _: place)
        return transform_matrix(translation, Quaternion(rotation))

    def _place(self, table: str, token: str) -> str:
        return f"{self.root / self.version / table}.json, token {token}"

    def _sweeps(self, key: dict, global_to_lidar: Matrix) -> Iterator[Sweep]:
        chain = [key]
        while len(chain) <= self.max_sweeps and chain[-1]["prev"]:
            chain.append(self.tables.get("sample_data", chain[-1]["prev"]))
        times = np.array([data["timestamp"] for data in chain])
        require_older(times, lambda row: self._place("sample_data", chain[row - 1]["token"]))
        for data in chain:
            sensor_to_global = self._ego_to_global(data) @ self._sensor_to_ego(data)
            lag_s = (key["timestamp"] - data["timestamp"]) * 1e-6
            yield Sweep(path=self.root / data["filename"], to_key=global_to_lidar @ sensor_to_global, lag_s=lag_s)

    def _camera(self, sample: dict, name: str, global_to_lidar: Matrix) -> Camera:
        if name not in sample["data"]:
            raise DataError(
                "the key frame has no image of a camera",
                where=f"token {sample['token']}",
                got=", ".join(sorted(sample["data"])),
                expected=name,
                cure="Check that sample_data.json lists all six cameras",
            )
        data = self.tables.get("sample_data", sample["data"][name])
        calibration = self.tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        return Camera(
            name=name,
            path=self.root / data["filename"],
            intrinsics=np.asarray(calibration["camera_intrinsic"], dtype=np.float64),
            to_lidar=global_to_lidar @ self._ego_to_global(data) @ self._sensor_to_ego(data),
            size=(data["height"], data["width"]),
        )

    def _boxes(self, sample: dict, global_to_lidar: Matrix) -> tuple[Float[np.ndarray, "M 9"], Int[np.ndarray, "M"]]:
        boxes = []
        for annotation, _ in self._annotations(sample):
            velocity = self._sound_velocity(annotation)
            boxes.append(box_in_lidar(annotation, np.nan_to_num(velocity), global_to_lidar))
        return np.asarray(boxes, dtype=np.float32).reshape(-1, 9), self._labels(sample)

    def _sound_velocity(self, annotation: dict) -> Float[np.ndarray, "3"]:
        """The velocity of a box, NaN where it is unknown; DataError where the box is none."""
        place = self._place("sample_annotation", annotation["token"])
        lengths = {"translation": 3, "size": 3, "rotation": 4}
        center, size, rotation = (numbers(annotation[key], n, f"{place}, {key}")[None] for key, n in lengths.items())
        for token in filter(None, (annotation["prev"], annotation["next"])):
            where = f"{self._place('sample_annotation', token)}, translation"
            numbers(self.tables.get("sample_annotation", token)["translation"], 3, where)
        velocity = self.tables.box_velocity(annotation["token"])
        require_boxes(center, size, rotation, velocity[None], lambda _: place)
        return velocity

    def _labels(self, sample: dict) -> Int[np.ndarray, "M"]:
        return np.asarray([label for _, label in self._annotations(sample)], dtype=np.int64)

    def _annotations(self, sample: dict) -> Iterator[tuple[dict, int]]:
        """The annotations of the ten classes that hold a point, and their labels."""
        for token in sample["anns"]:
            annotation = self.tables.get("sample_annotation", token)
            name = category_to_detection_name(annotation["category_name"])
            if name is not None and annotation["num_lidar_pts"] + annotation["num_radar_pts"] > 0:
                yield annotation, CLASSES.index(name)


def open_tables(root: Path, version: str) -> NuScenes:
    """Open nuScenes' tables with the devkit, having checked what it would only assert.

    Raises:
        DataError: the root, the version's folder or one of its tables is missing or not JSON.
    """
    folder = Path(root) / version
    if not folder.is_dir():
        found = sorted(p.name for p in Path(root).glob("v1.0-*")) if Path(root).is_dir() else "no such folder"
        raise DataError(
            "the nuScenes tables are missing",
            where=root,
            got=found or "a folder without tables",
            expected=f"{version}/",
            cure="Name the folder of samples/, sweeps/ and the tables with --data, and its version in the config",
        )
    try:
        return NuScenes(version, dataroot=str(root), verbose=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        # The devkit checks no table: what is amiss shows wherever its reverse indices first stumble.
        raise DataError(
            "a nuScenes table cannot be read",
            where=folder,
            got=f"{type(error).__name__}: {error}",
            cure="Unpack the tables again",
        ) from error


def _tokens_of_splits(tables: NuScenes, names: tuple[str, ...]) -> tuple[str, ...]:
    splits = create_splits_scenes()
    unknown = [name for name in names if name not in splits]
    if unknown:
        raise ConfigError(
            "unknown split", got=", ".join(unknown), expected=f"some of {', '.join(splits)}", cure="Change the split"
        )
    scenes = {scene for name in names for scene in splits[name]}
    wanted = {scene["token"] for scene in tables.scene if scene["name"] in scenes}
    tokens = tuple(sample["token"] for sample in tables.sample if sample["scene_token"] in wanted)
    if not tokens:
        raise DataError(
            "the split holds no key frame",
            where=f"{tables.table_root}, {', '.join(names) or 'no split named'}",
            got=f"scenes {', '.join(scene['name'] for scene in tables.scene) or 'none'}",
            cure="Choose a split of this version (mini_train and mini_val belong to v1.0-mini)",
        )
    return tokens


def box_in_lidar(annotation: dict, velocity: Float[np.ndarray, "3"], global_to_lidar: Matrix) -> list[float]:
    """An annotation or a result of nuScenes as x, y, z (bottom), dx, dy, dz, yaw_rad, vx, vy in the LiDAR frame."""
    rotation = global_to_lidar[:3, :3]
    center = rotation @ annotation["translation"] + global_to_lidar[:3, 3]
    width, length, height = annotation["size"]
    # Quaternion(matrix=...) checks orthogonality to 1e-8, which products of float poses miss.
    heading = rotation @ Quaternion(annotation["rotation"]).rotation_matrix[:, 0]
    yaw_rad = float(np.arctan2(heading[1], heading[0]))
    moving = rotation @ velocity
    return [*center[:2], center[2] - height / 2, length, width, height, yaw_rad, *moving[:2]]
