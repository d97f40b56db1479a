"""The JSON documents of a store: the root's attributes and the manifest's records, each signed with its SHA-256."""

import copy
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from cache.config import Strict
from cache.errors import ConfigError, CorruptStoreError, MismatchError, StoreError
from cache.spec import CacheSpec
from cache.store.distortion import Distortion
from cache.store.files import open_file, read_file, unreadable
from cache.store.format import DISTRUST, REPAIR, checksum_of
from cache.store.layout import (
    FEATURES,
    LARGEST_CHUNK,
    MANIFEST,
    ROOT,
    TOKEN,
    TOKEN_ORDER,
    VIEW_MATRIX,
    Layout,
    record_key,
    sample_arrays,
)

FORMAT_VERSION = 2
"""Of new stores; version 1 is read, resumed and repaired as it is."""

READABLE_VERSIONS = (1, 2)
LARGEST_DOCUMENT = 2**24
"""Bytes."""

FileSize = Annotated[int, Field(ge=0, le=2**48)]


class LayerReport(Strict):
    """What the codec lost of a layer over the whole store; no ratio where nothing was lost."""

    sqnr_db: float | None
    largest_error: float
    saturated_fraction: float


class ArrayFile(Strict):
    """The file of an array in one chunk, bound to the store by the root."""

    size: FileSize
    """Bytes."""
    crc32c: NonNegativeInt
    """The checksum that ends the file; compared whenever the store is opened."""
    sha256: str
    """Of the whole file; compared by `verify`."""

    @classmethod
    def of(cls, data: bytes) -> "ArrayFile":
        """The description of a file's bytes."""
        crc32c = checksum_of(np.frombuffer(data, np.uint8))
        return cls(size=len(data), crc32c=crc32c, sha256=hashlib.sha256(data).hexdigest())


class TeacherFile(Strict):
    """The checkpoint that the teacher was loaded from."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "TeacherFile":
        """The name and the digest of a file."""
        with path.open("rb") as file:
            return cls(name=path.name, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class StoreAttributes(Strict):
    """The attributes of the store's group."""

    format_version: Literal[1, 2] = 2
    spec: CacheSpec
    fingerprint: str
    classes: tuple[str, ...]
    """Of the heatmap's channels."""
    tasks: tuple[tuple[str, ...], ...]
    layout: Layout
    software: dict[str, str]
    """Versions of the software that made the store."""
    head_weights_sha256: str
    teacher_file: TeacherFile | None = None
    """None for a teacher without a checkpoint, and in version 1."""
    small_arrays: dict[str, ArrayFile] = Field(default_factory=dict)
    """By array; empty in version 1."""
    frames_sha256: str | None = None
    """Of the record of the frames that the store carries, which has the checksums of their files; None where it
    carries none, in version 1, and in stores whose frames were not bound to them."""
    codec_report: dict[str, LayerReport] = Field(default_factory=dict)
    """By layer, once sealed."""
    sealed: bool = False
    """All samples are committed."""

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the fields that its format version does not have."""
        absent = {"teacher_file", "small_arrays"} if self.format_version == 1 else set()
        if self.frames_sha256 is None:
            absent.add("frames_sha256")
        return self.model_dump(mode="json", exclude=absent)


class ShardFile(Strict):
    """One file of a committed shard."""

    bytes: FileSize
    index_crc32c: NonNegativeInt
    chunks_crc32c: str | None = Field(None, pattern=r"^([0-9a-f]{8})*$")
    """The checksum of each chunk, in eight hexadecimal digits; None in format version 1."""

    @property
    def checksums(self) -> list[int] | None:
        """The checksum of each chunk; None in format version 1."""
        digits = self.chunks_crc32c
        return None if digits is None else np.frombuffer(bytes.fromhex(digits), ">u4").tolist()


class ShardRecord(Strict):
    """The manifest's record of a committed shard."""

    shard: int
    fingerprint: str | None = None
    """Of the store's spec; None in format version 1."""
    files: dict[str, ShardFile]
    """By array."""
    distortion: dict[str, Distortion]
    """By layer, over the shard's samples."""


def codec_report(records: Sequence[ShardRecord]) -> dict[str, LayerReport]:
    """The error of each layer over all shards."""
    report = {}
    for name in records[0].distortion:
        total = sum((record.distortion[name] for record in records), start=Distortion())
        report[name] = LayerReport(
            sqnr_db=total.sqnr_db if math.isfinite(total.sqnr_db) else None,
            largest_error=total.largest,
            saturated_fraction=total.saturated / total.values,
        )
    return report


def read_attributes(store: Path) -> StoreAttributes:
    """The attributes in a store's root document; StoreError where there is no store."""
    try:
        os.close(open_file(store / ROOT))
    except (FileNotFoundError, NotADirectoryError) as error:
        cure = "Point to the folder that `cli dump-teacher` wrote"
        if isinstance(error, NotADirectoryError):
            cure = f"Unpack the archive with `unzip {store} -d FOLDER`, or `tar -xf`, and point to the folder in it"
        raise StoreError("there is no store here", where=store, got=error.strerror, cure=cure) from None
    except OSError as error:
        raise unreadable(store / ROOT, error) from error
    return parse_attributes(read_file(store, ROOT, LARGEST_DOCUMENT), str(store / ROOT))


def parse_attributes(data: bytes, where: str) -> StoreAttributes:
    """The attributes in the bytes of a root document.

    Raises:
        CorruptStoreError: it is broken, contradicts itself, or this project did not write it.
        MismatchError: it is of another format version, or has attributes that this version does not know.
    """
    values = read_signed(data, where).get("attributes", {})
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        raise MismatchError(
            "the store has another format version",
            where=where,
            got=version,
            expected=" or ".join(map(str, READABLE_VERSIONS)),
            cure="Read it with the version of this project that wrote it, or dump it again",
        )
    try:
        attributes = StoreAttributes.parse(values, where)
    except ConfigError as error:
        raise MismatchError(
            "the store has attributes that this version does not understand",
            where=where,
            got=error.what,
            cure="Read it with the version of this project that wrote it",
        ) from None
    _require_consistent(attributes, where)
    return attributes


def _require_consistent(attributes: StoreAttributes, where: str) -> None:
    spec = attributes.spec
    if attributes.fingerprint != spec.fingerprint:
        raise CorruptStoreError(
            "the store's fingerprint is not that of its spec",
            where=where,
            got=spec.fingerprint,
            expected=attributes.fingerprint,
            cure=REPAIR,
        )
    for array in sample_arrays(spec).values():
        if array.chunk_bytes > LARGEST_CHUNK:
            raise CorruptStoreError(
                "an array of the store is too large",
                where=f"{where}, {array.name}",
                got=f"{array.chunk_bytes} bytes for a view of a sample",
                expected=f"at most {LARGEST_CHUNK}",
                cure=DISTRUST,
            )


def is_committed(store: Path, shard: int) -> bool:
    """Whether the manifest has a record of a shard."""
    return (store / record_key(shard)).exists()


def recorded_shards(store: Path) -> set[int]:
    """The shards of which the manifest has a record."""
    try:
        names = [path.name for path in (store / MANIFEST).iterdir()]
    except OSError:
        return set()
    return {int(match[1]) for name in names if (match := re.fullmatch(r"(0|[1-9]\d{0,9})\.json", name))}


def read_record(store: Path, shard: int, attributes: StoreAttributes) -> ShardRecord:
    """The manifest's record of a committed shard.

    Raises:
        CorruptStoreError: it is missing, broken, or that of another shard or another store.
    """
    key = record_key(shard)
    return parse_record(read_file(store, key, LARGEST_DOCUMENT), shard, attributes, str(store / key))


def parse_record(data: bytes, shard: int, attributes: StoreAttributes, where: str) -> ShardRecord:
    """The record in the bytes of its document; errors as in `read_record`."""
    try:
        record = ShardRecord.parse(read_signed(data, where), where)
    except ConfigError as error:
        raise CorruptStoreError("a record of the store is broken", where=where, got=error.what, cure=REPAIR) from None
    expected: dict[str, Any] = {"shard": shard}
    found: dict[str, Any] = {"shard": record.shard}
    if attributes.format_version > 1:
        expected["fingerprint"], found["fingerprint"] = attributes.fingerprint, record.fingerprint
    if found != expected:
        raise CorruptStoreError(
            "a record is of another shard or another store", where=where, got=found, expected=expected, cure=REPAIR
        )
    _require_files(record, attributes, where)
    return record


def _require_files(record: ShardRecord, attributes: StoreAttributes, where: str) -> None:
    """Raise CorruptStoreError unless a record names each array, and in version 2 each chunk."""
    samples = len(attributes.layout.positions(record.shard, attributes.spec.data.samples))
    for array in sample_arrays(attributes.spec).values():
        file = record.files.get(array.name)
        digits = None if file is None else file.chunks_crc32c
        expected = None if attributes.format_version == 1 else 8 * samples * array.chunks
        if file is None or (None if digits is None else len(digits)) != expected:
            raise CorruptStoreError(
                "a record does not describe all of its shard",
                where=where,
                got=f"too little of {array.name}",
                cure=REPAIR,
            )


def read_document(store: Path, key: str) -> dict[str, Any]:
    """A signed JSON document; CorruptStoreError as in `read_file` and `read_signed`."""
    return read_signed(read_file(store, key, LARGEST_DOCUMENT), str(store / key))


def node_files(root: dict[str, Any], spec: CacheSpec) -> dict[str, bytes]:
    """The zarr.json of each array and inner group, by path, from the root's consolidated metadata.

    Raises:
        CorruptStoreError: the metadata is not of the spec's arrays.
    """
    expected = {*sample_arrays(spec), TOKEN, TOKEN_ORDER, VIEW_MATRIX, FEATURES}
    try:
        nodes = dict(root["consolidated_metadata"]["metadata"])
        own = {name: {k: v for k, v in node.items() if k != "consolidated_metadata"} for name, node in nodes.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        own = {}
    if own.keys() != expected:
        raise CorruptStoreError(
            "the root does not describe the store's arrays",
            where=ROOT,
            got=", ".join(sorted(own)) or "nothing",
            expected=", ".join(sorted(expected)),
            cure="Dump the store again",
        )
    return {f"{name}/{ROOT}": json.dumps(node, indent=2).encode() for name, node in own.items()}


def sign(document: dict[str, Any]) -> bytes:
    """A JSON document with the SHA-256 of the rest of it, among its attributes if it has some."""
    signed = copy.deepcopy(document)
    signed.get("attributes", signed)["sha256"] = _digest(document)
    return json.dumps(signed, indent=2).encode()


def read_signed(data: bytes, where: str) -> dict[str, Any]:
    """The document that `sign` wrote; CorruptStoreError where it is not JSON or its digest differs."""
    document = parse_json(data, where)
    signed = document.get("attributes", document)
    if not isinstance(signed, dict):
        raise _broken(where, f"a {type(signed).__name__} for attributes")
    stored = signed.pop("sha256", None)
    try:
        digest = _digest(document)
    except RecursionError as error:
        raise _broken(where, error) from None
    if stored != digest:
        raise CorruptStoreError("a document of the store does not match its SHA-256", where=where, cure=REPAIR)
    return document


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object with finite numbers; CorruptStoreError where it is none, or too deep."""
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _broken(where, error) from None
    if not isinstance(document, dict):
        raise _broken(where, f"a {type(document).__name__}")
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _broken(where: str, got: object) -> CorruptStoreError:
    return CorruptStoreError("a document of the store is broken", where=where, got=got, cure=REPAIR)


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
