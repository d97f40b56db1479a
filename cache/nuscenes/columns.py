"""What both stages need of nuScenes' tables, as columns: one row for a key frame, a sensor's file, a box."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Generic

import msgspec
import numpy as np
from jaxtyping import Float, Int, Shaped

from cache.errors import DataError
from cache.nuscenes.tables import (
    AnnotationRow,
    AnyRow,
    CalibrationRow,
    DataRow,
    InstanceRow,
    NamedRow,
    PoseRow,
    Row,
    SampleRow,
    SensorRow,
    read_chunks,
    read_table,
)

TABLES = (
    "category", "attribute", "sensor", "instance", "calibrated_sensor", "scene", "sample", "sample_data", "ego_pose",
    "sample_annotation",
)  # fmt: skip
"""The tables that are read; log, map and visibility are not needed."""

NONE = -1
"""In a column of row numbers: there is none."""

SEVERAL = -2
"""In `box_attribute`: more than one."""

LEAST_GAP_US = 1_000
"""A median below this from one key frame to the next says that times are seconds or milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """N key frames, D files of LiDARs and cameras, P poses, K calibrations, B boxes, each in its table's order.

    Row numbers are NONE where there is no other row. Files are all of the LiDARs', and the cameras' of key frames;
    boxes are sorted by key frame. Poses are x, y, z in metres and the quaternion w, x, y, z.

    sample_order: key frames by token, for a binary search.
    sample_boxes: key frame n has the boxes sample_boxes[n] .. sample_boxes[n + 1] - 1.
    sample_files: a key frame's file for each channel of `Names.channels`.
    file_size: height and width in pixels.
    box_size: width, length, height in metres.
    box_velocity: m/s in nuScenes' map frame; NaN where it is not known.
    box_points: LiDAR and radar points; -1 where the tables say that nobody counted.
    """

    sample_token: Shaped[np.ndarray, "N"]
    sample_order: Int[np.ndarray, "N"]
    sample_scene: Int[np.ndarray, "N"]
    sample_time_us: Int[np.ndarray, "N"]
    sample_previous: Int[np.ndarray, "N"]
    sample_boxes: Int[np.ndarray, "N1"]
    sample_files: Int[np.ndarray, "N channels"]
    file_name: Shaped[np.ndarray, "D"]
    file_time_us: Int[np.ndarray, "D"]
    file_previous: Int[np.ndarray, "D"]
    file_size: Int[np.ndarray, "D 2"]
    file_pose: Int[np.ndarray, "D"]
    file_calibration: Int[np.ndarray, "D"]
    pose: Float[np.ndarray, "P 7"]
    calibration: Float[np.ndarray, "K 7"]
    intrinsics: Float[np.ndarray, "K 3 3"]
    box_center: Float[np.ndarray, "B 3"]
    box_size: Float[np.ndarray, "B 3"]
    box_rotation: Float[np.ndarray, "B 4"]
    box_velocity: Float[np.ndarray, "B 3"]
    box_points: Int[np.ndarray, "B 2"]
    box_category: Int[np.ndarray, "B"]
    box_attribute: Int[np.ndarray, "B"]
    box_previous: Int[np.ndarray, "B"]
    box_next: Int[np.ndarray, "B"]


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """What the columns' small numbers stand for."""

    scenes: tuple[str, ...]
    channels: tuple[str, ...]
    categories: tuple[str, ...]
    classes: tuple[str | None, ...]
    """nuScenes' detection class of each category."""
    attributes: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    """nuScenes' own splits, as scenes' names."""
    official: tuple[str, ...]
    """The names of all categories that nuScenes has."""


CAMERA, RADAR = "camera", "radar"
"""Modalities; a sensor of another is a LiDAR."""

LONGEST_STEP_S = 1.5
"""Between two boxes of an object, for its velocity to be known."""

UNPACK = "Unpack the tables again, or correct them if they are of your own making"

Advance = Callable[[int], None]
"""Called with the bytes that were read since the last call."""


def compile_tables(folder: Path, advance: Advance = lambda _: None) -> tuple[Columns, Names]:
    """Read a version's tables.

    Raises:
        DataError: a table is missing or broken, refers to a record that is not there, or has times that are not in
            microseconds.
    """

    def table(name: str, kind: type[AnyRow]) -> _Table[AnyRow]:
        return _Table(path=folder / f"{name}.json", rows=list(read_table(folder / f"{name}.json", kind, advance)))

    category, attribute, scene = (table(name, NamedRow) for name in ("category", "attribute", "scene"))
    sensor, calibration, sample = (
        table("sensor", SensorRow),
        table("calibrated_sensor", CalibrationRow),
        table("sample", SampleRow),
    )
    channels = tuple(dict.fromkeys(row.channel for row in sensor.rows if row.modality != RADAR))
    file = _Table(path=folder / "sample_data.json", rows=list(_wanted_files(folder, calibration, sensor, advance)))
    columns = Columns(
        **_calibration_columns(calibration),
        **_sample_columns(sample, scene),
        **_file_columns(file, calibration, sensor, sample, channels),
        **_pose_columns(folder / "ego_pose.json", file, advance),
        **_box_columns(
            folder / "sample_annotation.json", sample, table("instance", InstanceRow), category, attribute, advance
        ),
    )
    return columns, _names(scene, category, attribute, channels)


def _names(
    scene: "_Table[NamedRow]", category: "_Table[NamedRow]", attribute: "_Table[NamedRow]", channels: tuple[str, ...]
) -> Names:
    # The devkit takes 1.5 s and 100 MB to import: here it is imported once for all later openings.
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.color_map import get_colormap
    from nuscenes.utils.splits import create_splits_scenes

    scenes, categories, attributes = (tuple(row.name for row in of.rows) for of in (scene, category, attribute))
    return Names(
        scenes=scenes,
        channels=channels,
        categories=categories,
        classes=tuple(category_to_detection_name(name) for name in categories),
        attributes=attributes,
        splits={name: tuple(of_split) for name, of_split in create_splits_scenes().items()},
        official=tuple(get_colormap()),
    )


@dataclass(frozen=True, kw_only=True)
class _Table(Generic[AnyRow]):
    path: Path
    rows: Sequence[AnyRow]

    @cached_property
    def at(self) -> dict[str, int]:
        """Rows by token."""
        found = {row.token: i for i, row in enumerate(self.rows)}
        if len(found) < len(self.rows):
            twice = next(row.token for i, row in enumerate(self.rows) if found[row.token] != i)
            raise DataError("a nuScenes table holds a token twice", where=self.path, got=twice, cure=UNPACK)
        return found

    def link(self, field: str, target: "_Table", optional: bool = False) -> Int[np.ndarray, "rows"]:
        """The row of `target` that each row's field names; NONE where an optional one is empty."""
        tokens, at = list(map(attrgetter(field), self.rows)), target.at
        if optional:
            at = at | {"": NONE}
        try:
            return np.fromiter(map(at.__getitem__, tokens), np.int32, len(tokens))
        except KeyError:
            i = next(i for i, token in enumerate(tokens) if token not in at)
            raise dangling(self.path, self.rows[i].token, field, tokens[i], target.path.stem) from None

    def times_us(self) -> Int[np.ndarray, "rows"]:
        times = np.array([row.timestamp for row in self.rows]) if self.rows else np.zeros(0, np.int64)
        if times.dtype != np.int64:
            fraction = next((time for time in times.tolist() if time != int(time)), None)
            if fraction is not None:
                raise wrong_times(self.path, repr(fraction))
        return times.astype(np.int64)


def dangling(path: Path, token: str, field: str, named: str, target: str) -> DataError:
    """A reference to a record that is not there."""
    return DataError(
        "a nuScenes table refers to a record that is not there",
        where=path,
        got=f"{field} {named!r} in record {token}",
        expected=f"a record of {target}.json",
        cure=UNPACK,
    )


def wrong_times(path: Path, got: str) -> DataError:
    """Times in another unit."""
    return DataError(
        "times are not in microseconds",
        where=path,
        got=got,
        expected="whole microseconds, such as 1533151603547590",
        cure="Write `timestamp` of sample and sample_data in microseconds",
    )


def _sample_columns(sample: _Table[SampleRow], scene: _Table[NamedRow]) -> dict[str, np.ndarray]:
    times, previous = sample.times_us(), sample.link("prev", sample, optional=True)
    gaps = (times - times[previous])[previous != NONE]
    if len(gaps) and np.median(gaps) < LEAST_GAP_US:
        raise wrong_times(sample.path, f"a median of {np.median(gaps):g} from one key frame to the next")
    tokens = _bytes(row.token for row in sample.rows)
    return {
        "sample_token": tokens,
        "sample_order": np.argsort(tokens, kind="stable").astype(np.int32),
        "sample_scene": sample.link("scene_token", scene),
        "sample_time_us": times,
        "sample_previous": previous,
    }


def _calibration_columns(calibration: _Table[CalibrationRow]) -> dict[str, np.ndarray]:
    unknown = np.full((3, 3), np.nan).tolist()
    matrices = [row.camera_intrinsic for row in calibration.rows]
    matrices = [matrix if [len(line) for line in matrix] == [3, 3, 3] else unknown for matrix in matrices]
    return {
        "calibration": _poses(calibration.rows),
        "intrinsics": np.array(matrices, dtype=np.float64).reshape(-1, 3, 3),
    }


def _wanted_files(
    folder: Path, calibration: _Table[CalibrationRow], sensor: _Table[SensorRow], advance: Advance
) -> Iterator[DataRow]:
    """The rows of every LiDAR, and of the cameras at key frames, without the chain of what lies between those."""
    modalities = [sensor.rows[i].modality for i in calibration.link("sensor_token", sensor)]
    path = folder / "sample_data.json"
    for rows in read_chunks(path, DataRow, advance):
        of_rows = _Table(path=path, rows=rows).link("calibrated_sensor_token", calibration)
        for row, i in zip(rows, of_rows.tolist(), strict=True):
            if modalities[i] == CAMERA and row.is_key_frame:
                yield msgspec.structs.replace(row, prev="")
            elif modalities[i] not in (CAMERA, RADAR):
                yield row


def _file_columns(
    file: _Table[DataRow],
    calibration: _Table[CalibrationRow],
    sensor: _Table[SensorRow],
    sample: _Table[SampleRow],
    channels: tuple[str, ...],
) -> dict[str, np.ndarray]:
    calibrations = file.link("calibrated_sensor_token", calibration)
    of_sensor = np.array([channels.index(r.channel) if r.channel in channels else NONE for r in sensor.rows], int)
    of_file = of_sensor[calibration.link("sensor_token", sensor)[calibrations]]
    keys = np.flatnonzero([row.is_key_frame for row in file.rows])
    key_files = _Table(path=file.path, rows=[file.rows[i] for i in keys])
    sample_files = np.full((len(sample.rows), len(channels)), NONE, dtype=np.int32)
    sample_files[key_files.link("sample_token", sample), of_file[keys]] = keys
    return {
        "sample_files": sample_files,
        "file_name": _bytes(row.filename for row in file.rows),
        "file_time_us": file.times_us(),
        "file_previous": file.link("prev", file, optional=True),
        "file_size": np.array([(row.height, row.width) for row in file.rows], dtype=np.int32).reshape(-1, 2),
        "file_calibration": calibrations,
    }


def _pose_columns(path: Path, file: _Table[DataRow], advance: Advance) -> dict[str, np.ndarray]:
    """The poses that files name, and their rows."""
    tokens = [row.ego_pose_token for row in file.rows]
    row_of = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    poses = np.full((len(row_of), 7), np.nan)
    for rows in read_chunks(path, PoseRow, advance):
        wanted = [row for row in rows if row.token in row_of]
        poses[[row_of[row.token] for row in wanted]] = _poses(wanted)
    found = np.fromiter(map(row_of.__getitem__, tokens), np.int32, len(tokens))
    if len(missing := np.flatnonzero(np.isnan(poses[found, 0]))):
        row = file.rows[missing[0]]
        raise dangling(file.path, row.token, "ego_pose_token", row.ego_pose_token, path.stem)
    return {"pose": poses, "file_pose": found}


class _Chained(Row):
    prev: str
    next: str


def _box_columns(
    path: Path,
    sample: _Table[SampleRow],
    instance: _Table[InstanceRow],
    category: _Table[NamedRow],
    attribute: _Table[NamedRow],
    advance: Advance,
) -> dict[str, np.ndarray]:
    of_instance = instance.link("category_token", category)
    links: list[_Chained] = []
    parts: dict[str, list[np.ndarray]] = {}
    for rows in read_chunks(path, AnnotationRow, advance):
        links += [_Chained(token=row.token, prev=row.prev, next=row.next) for row in rows]
        chunk = _Table(path=path, rows=rows)
        read = {
            "sample": chunk.link("sample_token", sample),
            "box_center": np.array([row.translation for row in rows], np.float64).reshape(-1, 3),
            "box_size": np.array([row.size for row in rows], np.float64).reshape(-1, 3),
            "box_rotation": np.array([row.rotation for row in rows], np.float64).reshape(-1, 4),
            "box_points": np.array([(r.num_lidar_pts, r.num_radar_pts) for r in rows], np.int32).reshape(-1, 2),
            "box_category": of_instance[chunk.link("instance_token", instance)].astype(np.int16),
            "box_attribute": _attributes(chunk, attribute),
        }
        for name, column in read.items():
            parts.setdefault(name, []).append(column)
    columns = {name: np.concatenate(columns) for name, columns in parts.items()}
    boxes = _Table(path=path, rows=links)
    before, after = (boxes.link(field, boxes, optional=True) for field in ("prev", "next"))
    of_sample = columns.pop("sample")
    order = np.argsort(of_sample, kind="stable")
    rank = np.empty_like(before)
    rank[order] = np.arange(len(order), dtype=np.int32)
    columns |= {
        "box_velocity": _velocities(columns["box_center"], sample.times_us()[of_sample], before, after),
        "box_previous": np.where(before == NONE, NONE, rank[before]),
        "box_next": np.where(after == NONE, NONE, rank[after]),
    }
    counts = np.bincount(of_sample, minlength=len(sample.rows))
    return {
        **{name: column[order] for name, column in columns.items()},
        "sample_boxes": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    }


def _attributes(rows: _Table[AnnotationRow], attribute: _Table[NamedRow]) -> Int[np.ndarray, "rows"]:
    at = attribute.at
    for row in rows.rows:
        for token in row.attribute_tokens:
            if token not in at:
                raise dangling(rows.path, row.token, "attribute_tokens", token, attribute.path.stem)
    named = [row.attribute_tokens for row in rows.rows]
    return np.array([NONE if not t else at[t[0]] if len(t) == 1 else SEVERAL for t in named], dtype=np.int16)


def _velocities(
    centers: Float[np.ndarray, "B 3"],
    times_us: Int[np.ndarray, "B"],
    before: Int[np.ndarray, "B"],
    after: Int[np.ndarray, "B"],
) -> Float[np.ndarray, "B 3"]:
    """As NuScenes.box_velocity, digit by digit: centred differences, over at most 1.5 s to either side."""
    itself = np.arange(len(centers))
    has_before, has_after = before != NONE, after != NONE
    first, last = np.where(has_before, before, itself), np.where(has_after, after, itself)
    seconds = 1e-6 * times_us[last] - 1e-6 * times_us[first]
    longest_s = np.where(has_before & has_after, 2 * LONGEST_STEP_S, LONGEST_STEP_S)
    known = (has_before | has_after) & (seconds <= longest_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        velocities = (centers[last] - centers[first]) / seconds[:, None]
    return np.where(known[:, None], velocities, np.nan)


def _poses(rows: Sequence[CalibrationRow | PoseRow]) -> Float[np.ndarray, "rows 7"]:
    return np.array([(*row.translation, *row.rotation) for row in rows], dtype=np.float64).reshape(-1, 7)


def _bytes(texts: Iterable[str]) -> Shaped[np.ndarray, "rows"]:
    """Texts as UTF-8, each as wide as the longest."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded or [b""], dtype=np.bytes_)[: len(encoded)]
