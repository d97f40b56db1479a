"""nuScenes' JSON tables as typed rows, a few megabytes at a time; fields that neither stage needs are skipped."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from cache.errors import DataError

Vector = tuple[float, float, float]
"""x, y, z in metres."""

Rotation = tuple[float, float, float, float]
"""Quaternion w, x, y, z."""


Count = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""A whole number that a column can hold."""


class Row(msgspec.Struct, gc=False):
    """What every table has."""

    token: str


class NamedRow(Row):
    """Of category, attribute and scene."""

    name: str


class SensorRow(Row):
    """Of sensor."""

    channel: str
    modality: str


class CalibrationRow(Row):
    """Of calibrated_sensor."""

    sensor_token: str
    translation: Vector
    rotation: Rotation
    camera_intrinsic: list[list[float]] = []


class PoseRow(Row):
    """Of ego_pose."""

    translation: Vector
    rotation: Rotation


class SampleRow(Row):
    """Of sample."""

    scene_token: str
    timestamp: int | float
    prev: str


class DataRow(Row):
    """Of sample_data."""

    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int | float
    is_key_frame: bool
    height: Count
    width: Count
    filename: str
    prev: str


class InstanceRow(Row):
    """Of instance."""

    category_token: str


class AnnotationRow(Row):
    """Of sample_annotation."""

    sample_token: str
    instance_token: str
    attribute_tokens: list[str]
    translation: Vector
    size: Vector
    rotation: Rotation
    num_lidar_pts: Count
    num_radar_pts: Count
    prev: str
    next: str


AnyRow = TypeVar("AnyRow", bound=Row)

UNPACK = "Unpack the tables again, or correct them if they are of your own making"
"""The cure of most faults of tables."""

Advance = Callable[[int], None]
"""Called with the bytes that were read since the last call."""

CHUNK_BYTES = 8 << 20
_BETWEEN_ROWS = re.compile(rb"\}\s*,\s*\{")
_TAIL_BYTES = 1 << 16
_MOST_CUTS = 8


def read_table(path: Path, kind: type[AnyRow], advance: Advance = lambda _: None) -> Iterator[AnyRow]:
    """The rows of a table.

    Args:
        advance: called with the bytes read since the last call.

    Raises:
        DataError: the file is missing, is not JSON, or a row lacks a field or has one of another type.
    """
    for rows in read_chunks(path, kind, advance):
        yield from rows


def read_chunks(path: Path, kind: type[AnyRow], advance: Advance = lambda _: None) -> Iterator[list[AnyRow]]:
    """The rows of a table, in lists of a few thousand.

    A prefix of the file that ends with a brace decodes, once it is closed by a bracket, only where the brace closes a
    row: a cut within a string or a nested object leaves it open.

    Raises:
        DataError: as for `read_table`.
    """
    decoder: msgspec.json.Decoder[list[AnyRow]] = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    pending, done = b"", 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                advance(len(chunk))
                pending += chunk
                if cuts := list(_BETWEEN_ROWS.finditer(pending, max(0, len(pending) - _TAIL_BYTES))):
                    found, pending = _decode_prefix(decoder, pending, cuts)
                    done += len(found)
                    yield found
        yield decoder.decode(pending)
    except OSError as error:
        raise _unreadable(path, f"{type(error).__name__}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}, counted from row {done}") from None


def _decode_prefix(
    decoder: msgspec.json.Decoder[list[AnyRow]], text: bytes, cuts: list[re.Match[bytes]]
) -> tuple[list[AnyRow], bytes]:
    """The rows before the last cut that is between two rows, and the rest as a list of its own."""
    for cut in reversed(cuts[-_MOST_CUTS:]):
        try:
            return decoder.decode(text[: cut.start() + 1] + b"]"), b"[" + text[cut.end() - 1 :]
        except msgspec.DecodeError as error:
            if "truncated" not in str(error):
                raise
    return [], text


def _unreadable(path: Path, got: str) -> DataError:
    return DataError("a nuScenes table cannot be read", where=path, got=got, cure=UNPACK)
