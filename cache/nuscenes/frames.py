"""The key frames of some splits, built on demand from the index of the tables."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from cache.errors import DataError
from cache.nuscenes.columns import NO_ROW
from cache.nuscenes.frame import Camera, Frame, Sweep
from cache.nuscenes.index import open_index
from cache.nuscenes.index_files import TableIndex
from cache.nuscenes.plausibility import require_boxes, require_older, require_poses
from cache.nuscenes.poses import Matrix, boxes_in_lidar, pose_matrices
from cache.nuscenes.splits import scenes_of_splits
from cache.nuscenes.tables import UNPACK
from cache.spec import CLASSES, LIDAR

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


@runtime_checkable
class IndexSource(Protocol):
    """Where an index comes from, if not from tables."""

    @property
    def path(self) -> Path:
        """Of the file or folder."""

    def read(self) -> tuple[TableIndex, str] | None:
        """The index and the version of its tables; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Frames(Sequence[Frame]):
    """The key frames of some splits, in the tables' order; `frames[3]` and `frames[token]` build one on demand.

    splits: nuScenes' splits, those of `splits.json` beside the tables, scenes' names, or "all".

    Raises:
        DataError: the data root, a table or a version is missing, or the splits hold no key frame.
        ConfigError: a split is unknown.
    """

    root: Path
    version: str
    splits: tuple[str, ...]
    max_sweeps: int = 9
    """Past LiDAR rotations that a frame lists beside its own."""
    cameras: tuple[str, ...] = ()
    """Channels, in the order of a frame's images. By default those of nuScenes' six that sensor.json lists, or all of
    its cameras where it lists none of the six."""
    lidar: str = ""
    """The channel whose frame all geometry is in: by default LIDAR_TOP, or the only LiDAR that sensor.json lists."""
    store: IndexSource | None = None
    """A store that carries its frames (`cache.store.stored_frames.StoredFrames`): read where the root has no tables."""
    tables: TableIndex = field(init=False, repr=False, compare=False)
    tokens: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "tables", self._index())
        object.__setattr__(self, "tokens", self._tokens())
        names = self.tables.names
        known = tuple(name for name in CAMERAS if name in names.cameras)
        object.__setattr__(self, "cameras", self.cameras or known or names.cameras)
        only = names.lidars[0] if len(names.lidars) == 1 else LIDAR
        object.__setattr__(self, "lidar", self.lidar or only)

    def __len__(self) -> int:
        return len(self.tokens)

    def with_sweeps(self, past: int) -> "Frames":
        """The same frames, which list at least so many past rotations."""
        return self if past <= self.max_sweeps else replace(self, max_sweeps=past)

    def __getitem__(self, key: int | str) -> Frame:  # type: ignore[override]
        token = self.tokens[key] if isinstance(key, int) else key
        row, columns = self._row(token), self.tables.columns
        sweeps = self._sweep_files(token, row)
        cameras = [self.file_row(token, row, name) for name in self.cameras]
        files = np.array(sweeps + cameras)
        self._require_plausible(token, files, len(sweeps))
        sensor_to_ego = pose_matrices(columns.calibration[columns.file_calibration[files]])
        ego_to_global = pose_matrices(columns.pose[columns.file_pose[files]])
        global_to_lidar = np.linalg.inv(ego_to_global[0] @ sensor_to_ego[0])
        past = slice(len(sweeps))
        to_key = global_to_lidar @ (ego_to_global[past] @ sensor_to_ego[past])
        to_lidar = (global_to_lidar @ ego_to_global[len(sweeps) :]) @ sensor_to_ego[len(sweeps) :]
        boxes, labels = self._boxes(row, global_to_lidar)
        previous = int(columns.sample_previous[row])
        return Frame(
            token=token,
            scene=self.tables.names.scenes[columns.sample_scene[row]],
            timestamp_us=int(columns.sample_time_us[row]),
            sweeps=self._sweeps(sweeps, to_key),
            cameras=self._cameras(token, cameras, to_lidar),
            boxes=boxes,
            labels=labels,
            lidar_to_ego=sensor_to_ego[0],
            ego_to_global=ego_to_global[0],
            previous=None if previous == NO_ROW else columns.sample_token[previous].decode(),
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[token] for token in self.tokens)

    def labels(self, token: str) -> Int[np.ndarray, "M"]:
        """The labels of a frame's boxes, without building the frame."""
        return self._labels(self._row(token))[1]

    def label_counts(self) -> Int[np.ndarray, "N classes"]:
        """The boxes of each class in each frame, without building the frames."""
        boxes, of_frame = self.box_rows()
        labels, kept = self.box_labels(boxes)
        counts = np.bincount(of_frame[kept] * len(CLASSES) + labels[kept], minlength=len(self) * len(CLASSES))
        return counts.reshape(len(self), len(CLASSES))

    def box_rows(self) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """The rows of all annotations of the frames in the index's columns, and the number of the frame of each."""
        starts, rows = self.tables.columns.sample_boxes.astype(np.int64), self.rows()
        counts = starts[rows + 1] - starts[rows]
        of_frame = np.repeat(np.arange(len(rows)), counts)
        return np.arange(counts.sum()) + (starts[rows] + counts - np.cumsum(counts))[of_frame], of_frame

    def box_labels(self, boxes: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
        """The labels of annotations, -1 where they are of no class, and which of them are a frame's boxes."""
        columns = self.tables.columns
        labels = self._label_of_category[columns.box_category[boxes]]
        return labels, (labels >= 0) & (columns.box_points[boxes].sum(axis=1) > 0)

    def rows(self) -> Int[np.ndarray, "N"]:
        """The frames' rows in the index's columns."""
        return self.tables.rows(self.tokens)

    def of_splits(self, *splits: str) -> "Frames":
        """The key frames of other splits; the index is shared.

        Raises:
            DataError, ConfigError: as for new frames.
        """
        others = copy(self)
        object.__setattr__(others, "splits", splits)
        object.__setattr__(others, "tokens", others._tokens())
        return others

    def keeping(self, wanted: Callable[[str], bool]) -> "Frames":
        """The key frames whose tokens are wanted; the others can still be built by their token."""
        others = copy(self)
        object.__setattr__(others, "tokens", tuple(token for token in self.tokens if wanted(token)))
        return others

    def scenes_of(self, *splits: str) -> set[str]:
        """The names of all scenes of some splits, whether the tables hold them or not.

        Raises:
            ConfigError: a split is unknown.
            DataError: splits.json is broken.
        """
        return scenes_of_splits(splits, self.tables.names, self.root / self.version)

    def _index(self) -> TableIndex:
        if self.store is None or (self.root / self.version).is_dir():
            return open_index(self.root, self.version)
        found = self.store.read()
        if found is not None and found[1] == self.version:
            return found[0]
        raise DataError(
            "the nuScenes tables are missing, and the store does not carry their frames",
            where=f"{self.root / self.version}, {self.store.path}",
            got="none" if found is None else f"frames of {found[1]}",
            expected=f"frames of {self.version}",
            cure="Name a store of this version, run its `dump-teacher` again to add the frames, or unpack the tables",
        )

    def _tokens(self) -> tuple[str, ...]:
        columns, names = self.tables.columns, self.tables.names
        wanted = self.scenes_of(*self.splits)
        of_scene = np.array([name in wanted for name in names.scenes], dtype=bool)
        tokens = columns.sample_token[of_scene[columns.sample_scene]] if len(of_scene) else np.zeros(0, "S1")
        if not len(tokens):
            raise DataError(
                "the split holds no key frame",
                where=f"{self.root / self.version}, {', '.join(self.splits) or 'no split named'}",
                got=f"scenes {_listed(names.scenes)}",
                cure="Choose a split of this version (mini_train and mini_val belong to v1.0-mini), `all`, or "
                "name scenes of your own in splits.json beside the tables",
            )
        return tuple(token.decode() for token in tokens.tolist())

    def _row(self, token: str) -> int:
        row = self.tables.row(token)
        if row is None:
            raise DataError(
                "the tables hold no such key frame",
                where=f"{self.root}, {self.version}",
                got=token,
                cure="Check the token, or open the version that it belongs to",
            )
        return row

    def file_row(self, token: str, row: int, channel: str) -> int:
        """The row of a key frame's file in the index's columns.

        Raises:
            DataError: the tables have none.
        """
        channels, of_frame = self.tables.names.channels, self.tables.columns.sample_files[row]
        file = int(of_frame[channels.index(channel)]) if channel in channels else NO_ROW
        if file == NO_ROW:
            there = (name for name, found in zip(channels, of_frame, strict=True) if found != NO_ROW)
            kind = "LiDAR rotation" if channel == self.lidar else "image of a camera"
            raise DataError(
                f"the key frame has no {kind}",
                where=f"token {token}",
                got=", ".join(sorted(there)) or "no file",
                expected=channel,
                cure=f"Complete sample_data.json, or choose other sensors than {self.lidar}, {', '.join(self.cameras)}",
            )
        return file

    def _sweep_files(self, token: str, row: int) -> list[int]:
        files = [self.file_row(token, row, self.lidar)]
        while len(files) <= self.max_sweeps and (before := int(self.tables.columns.file_previous[files[-1]])) != NO_ROW:
            files.append(before)
        return files

    def _sweeps(self, files: list[int], to_key: Float[np.ndarray, "S 4 4"]) -> tuple[Sweep, ...]:
        columns = self.tables.columns
        names, times = columns.file_name[files].tolist(), columns.file_time_us[files].tolist()
        return tuple(
            Sweep(path=self.root / name.decode(), to_key=matrix, lag_s=(times[0] - time) * 1e-6)
            for name, time, matrix in zip(names, times, to_key, strict=True)
        )

    def _cameras(self, token: str, files: list[int], to_lidar: Float[np.ndarray, "C 4 4"]) -> tuple[Camera, ...]:
        columns = self.tables.columns
        names, sizes = columns.file_name[files].tolist(), columns.file_size[files].tolist()
        intrinsics = columns.intrinsics[columns.file_calibration[files]]
        if len(files) and np.isnan(intrinsics).any():
            raise DataError(
                "a camera has no intrinsics",
                where=f"token {token}, {self.cameras[int(np.isnan(intrinsics).any(axis=(1, 2)).argmax())]}",
                expected="camera_intrinsic of 3 x 3 in calibrated_sensor.json",
                cure=UNPACK,
            )
        # A network inverts them on its device, where a matrix without an inverse would pass unseen.
        if (singular := np.linalg.det(intrinsics) == 0).any():
            raise DataError(
                "a camera's intrinsics have no inverse",
                where=f"token {token}, {self.cameras[int(singular.argmax())]}",
                got=f"camera_intrinsic {intrinsics[int(singular.argmax())].tolist()}",
                expected="focal lengths above 0",
                cure="Correct calibrated_sensor.json",
            )
        return tuple(
            Camera(name=channel, path=self.root / name.decode(), intrinsics=matrix, to_lidar=pose, size=(height, width))
            for channel, name, matrix, pose, (height, width) in zip(
                self.cameras, names, intrinsics, to_lidar, sizes, strict=True
            )
        )

    def _require_plausible(self, token: str, files: Int[np.ndarray, "F"], sweeps: int) -> None:
        """Raise DataError where a pose of a frame's files is no pose, or `prev` does not lead to the past."""
        columns = self.tables.columns

        def where(row: int) -> str:
            return f"token {token}, {columns.file_name[files[row]].decode()}"

        require_older(columns.file_time_us[files[:sweeps]], where)
        for poses in (columns.calibration[columns.file_calibration[files]], columns.pose[columns.file_pose[files]]):
            require_poses(poses[:, :3], poses[:, 3:], where)

    def _boxes(self, row: int, global_to_lidar: Matrix) -> tuple[Float[np.ndarray, "M 9"], Int[np.ndarray, "M"]]:
        columns = self.tables.columns
        kept, labels = self._labels(row)
        center, size, rotation = columns.box_center[kept], columns.box_size[kept], columns.box_rotation[kept]
        velocity, token = columns.box_velocity[kept], columns.sample_token[row].decode()
        require_boxes(center, size, rotation, velocity, lambda box: f"token {token}, box {box} of its annotations")
        boxes = boxes_in_lidar(center, size, rotation, np.nan_to_num(velocity), global_to_lidar)
        return boxes.astype(np.float32), labels

    def _labels(self, row: int) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
        """The rows of a frame's boxes, and their labels."""
        boxes = np.arange(*self.tables.columns.sample_boxes[row : row + 2].tolist())
        labels, kept = self.box_labels(boxes)
        return boxes[kept], labels[kept]

    @cached_property
    def _label_of_category(self) -> Int[np.ndarray, "categories"]:
        return np.array([-1 if name is None else CLASSES.index(name) for name in self.tables.names.classes], np.int64)


def _listed(scenes: Sequence[str], most: int = 10) -> str:
    more = f" and {len(scenes) - most} more" if len(scenes) > most else ""
    return ", ".join(scenes[:most]) + more if scenes else "none"
