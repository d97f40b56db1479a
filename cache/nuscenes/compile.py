"""nuScenes' JSON tables -> columns."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float, Shaped

from cache.nuscenes.columns import NO_ROW, Columns, Names
from cache.nuscenes.compile_boxes import box_columns
from cache.nuscenes.linked_table import LinkedTable, dangling, times_us, wrong_order, wrong_times
from cache.nuscenes.official import CATEGORIES, CLASS_OF, split_scenes
from cache.nuscenes.tables import (
    Advance,
    AnyRow,
    CalibrationRow,
    DataRow,
    InstanceRow,
    NamedRow,
    PoseRow,
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

CAMERA, RADAR = "camera", "radar"
"""Modalities; a sensor of another is a LiDAR."""

LEAST_GAP_US = 1_000
"""A median below this from one key frame to the next means that times are seconds or milliseconds."""


def compile_tables(folder: Path, advance: Advance = lambda _: None) -> tuple[Columns, Names]:
    """Read a version's tables.

    Raises:
        DataError: a table is missing or broken, refers to a record that is not there, or has times that are not in
            microseconds.
    """

    def table(name: str, kind: type[AnyRow]) -> LinkedTable[AnyRow]:
        return LinkedTable(path=folder / f"{name}.json", rows=list(read_table(folder / f"{name}.json", kind, advance)))

    category, attribute, scene = (table(name, NamedRow) for name in ("category", "attribute", "scene"))
    sensor, calibration, sample = (
        table("sensor", SensorRow),
        table("calibrated_sensor", CalibrationRow),
        table("sample", SampleRow),
    )
    channels = tuple(dict.fromkeys(row.channel for row in sensor.rows if row.modality != RADAR))
    file = LinkedTable(path=folder / "sample_data.json", rows=list(_wanted_files(folder, calibration, sensor, advance)))
    columns = Columns(
        **_calibration_columns(calibration),
        **_sample_columns(sample, scene),
        **_file_columns(file, calibration, sensor, sample, channels),
        **_pose_columns(folder / "ego_pose.json", file, advance),
        **box_columns(
            folder / "sample_annotation.json", sample, table("instance", InstanceRow), category, attribute, advance
        ),
    )
    return columns, _names(scene, category, attribute, sensor, channels)


def _names(
    scene: LinkedTable[NamedRow],
    category: LinkedTable[NamedRow],
    attribute: LinkedTable[NamedRow],
    sensor: LinkedTable[SensorRow],
    channels: tuple[str, ...],
) -> Names:
    scenes, categories, attributes = (tuple(row.name for row in of.rows) for of in (scene, category, attribute))
    modality_of = {row.channel: row.modality for row in sensor.rows}
    return Names(
        scenes=scenes,
        channels=channels,
        lidars=tuple(name for name in channels if modality_of[name] != CAMERA),
        cameras=tuple(name for name in channels if modality_of[name] == CAMERA),
        categories=categories,
        classes=tuple(CLASS_OF.get(name) for name in categories),
        attributes=attributes,
        splits=split_scenes(),
        official=CATEGORIES,
    )


def _sample_columns(sample: LinkedTable[SampleRow], scene: LinkedTable[NamedRow]) -> dict[str, np.ndarray]:
    times, previous = times_us(sample), sample.link("prev", sample, optional=True)
    gaps = (times - times[previous])[previous != NO_ROW]
    if (gaps <= 0).any():
        row = int(np.flatnonzero(previous != NO_ROW)[(gaps <= 0).argmax()])
        raise wrong_order(sample.path, sample.rows[row].token, int(times[row] - times[previous[row]]))
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


def _calibration_columns(calibration: LinkedTable[CalibrationRow]) -> dict[str, np.ndarray]:
    unknown = np.full((3, 3), np.nan).tolist()
    matrices = [row.camera_intrinsic for row in calibration.rows]
    matrices = [matrix if [len(line) for line in matrix] == [3, 3, 3] else unknown for matrix in matrices]
    return {
        "calibration": _poses(calibration.rows),
        "intrinsics": np.array(matrices, dtype=np.float64).reshape(-1, 3, 3),
    }


def _wanted_files(
    folder: Path, calibration: LinkedTable[CalibrationRow], sensor: LinkedTable[SensorRow], advance: Advance
) -> Iterator[DataRow]:
    """The rows of every LiDAR, and of the cameras at key frames, without the chain of what lies between those."""
    modalities = [sensor.rows[i].modality for i in calibration.link("sensor_token", sensor)]
    path = folder / "sample_data.json"
    for rows in read_chunks(path, DataRow, advance):
        of_rows = LinkedTable(path=path, rows=rows).link("calibrated_sensor_token", calibration)
        for row, i in zip(rows, of_rows.tolist(), strict=True):
            if modalities[i] == CAMERA and row.is_key_frame:
                yield msgspec.structs.replace(row, prev="")
            elif modalities[i] not in (CAMERA, RADAR):
                yield row


def _file_columns(
    file: LinkedTable[DataRow],
    calibration: LinkedTable[CalibrationRow],
    sensor: LinkedTable[SensorRow],
    sample: LinkedTable[SampleRow],
    channels: tuple[str, ...],
) -> dict[str, np.ndarray]:
    calibrations = file.link("calibrated_sensor_token", calibration)
    of_sensor = np.array([channels.index(r.channel) if r.channel in channels else NO_ROW for r in sensor.rows], int)
    of_file = of_sensor[calibration.link("sensor_token", sensor)[calibrations]]
    keys = np.flatnonzero([row.is_key_frame for row in file.rows])
    key_files = LinkedTable(path=file.path, rows=[file.rows[i] for i in keys])
    sample_files = np.full((len(sample.rows), len(channels)), NO_ROW, dtype=np.int32)
    sample_files[key_files.link("sample_token", sample), of_file[keys]] = keys
    return {
        "sample_files": sample_files,
        "file_name": _bytes(row.filename for row in file.rows),
        "file_time_us": times_us(file),
        "file_previous": file.link("prev", file, optional=True),
        "file_size": np.array([(row.height, row.width) for row in file.rows], dtype=np.int32).reshape(-1, 2),
        "file_calibration": calibrations,
    }


def _pose_columns(path: Path, file: LinkedTable[DataRow], advance: Advance) -> dict[str, np.ndarray]:
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


def _poses(rows: Sequence[CalibrationRow | PoseRow]) -> Float[np.ndarray, "rows 7"]:
    return np.array([(*row.translation, *row.rotation) for row in rows], dtype=np.float64).reshape(-1, 7)


def _bytes(texts: Iterable[str]) -> Shaped[np.ndarray, "rows"]:
    """Texts as UTF-8, each as wide as the longest."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded or [b""], dtype=np.bytes_)[: len(encoded)]
