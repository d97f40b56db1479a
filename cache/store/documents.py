"""The JSON documents of a store: the root's attributes and the manifest's records, each signed with its SHA-256."""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cache.config import Strict
from cache.errors import ConfigError, CorruptStoreError, MismatchError, StoreError
from cache.spec import FORMAT_VERSION, CacheSpec
from cache.store.distortion import Distortion
from cache.store.format import REPAIR
from cache.store.layout import ROOT, Layout, record_key


class LayerReport(Strict):
    """What the codec lost of a layer over the whole store; no ratio where nothing was lost."""

    sqnr_db: float | None
    largest_error: float
    saturated_fraction: float


class StoreAttributes(Strict):
    """The attributes of the store's group."""

    format_version: Literal[1] = 1
    spec: CacheSpec
    fingerprint: str
    classes: tuple[str, ...]
    """Of the heatmap's channels."""
    tasks: tuple[tuple[str, ...], ...]
    layout: Layout
    software: dict[str, str]
    """Versions of the software that made the store."""
    head_weights_sha256: str
    codec_report: dict[str, LayerReport] = Field(default_factory=dict)
    """By layer, once sealed."""
    sealed: bool = False
    """All samples are committed."""


class ShardFile(Strict):
    """One file of a committed shard."""

    bytes: int
    index_crc32c: int


class ShardRecord(Strict):
    """The manifest's record of a committed shard."""

    shard: int
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
        data = (store / ROOT).read_bytes()
    except OSError as error:
        cure = "Point to the folder that `cli dump-teacher` wrote"
        if isinstance(error, NotADirectoryError):
            cure = f"Unpack the archive with `unzip {store} -d FOLDER`, or `tar -xf`, and point to the folder in it"
        raise StoreError("there is no store here", where=store, got=error.strerror, cure=cure) from None
    return parse_attributes(data, str(store / ROOT))


def parse_attributes(data: bytes, where: str) -> StoreAttributes:
    """The attributes in the bytes of a root document.

    Raises:
        CorruptStoreError: it is broken, or this project did not write it.
        MismatchError: it is of another format version, or has attributes that this version does not know.
    """
    attributes = read_signed(data, where)["attributes"]
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise MismatchError(
            "the store has another format version",
            where=where,
            got=version,
            expected=FORMAT_VERSION,
            cure="Read it with the version of this project that wrote it, or dump it again",
        )
    try:
        return StoreAttributes.parse(attributes, where)
    except ConfigError as error:
        raise MismatchError(
            "the store has attributes that this version does not understand",
            where=where,
            got=error.what,
            cure="Read it with the version of this project that wrote it",
        ) from None


def is_committed(store: Path, shard: int) -> bool:
    """Whether the manifest has a record of a shard."""
    return (store / record_key(shard)).exists()


def read_record(store: Path, shard: int) -> ShardRecord:
    """The manifest's record of a committed shard; CorruptStoreError where it is missing or broken."""
    path = store / record_key(shard)
    return ShardRecord.parse(read_document(path), path)


def read_document(path: Path) -> dict[str, Any]:
    """A signed JSON document; CorruptStoreError as in `read_file` and `read_signed`."""
    return read_signed(read_file(path), str(path))


def node_files(root: dict[str, Any]) -> dict[str, bytes]:
    """The zarr.json of each array and inner group, by path, from the root's consolidated metadata."""
    files = {}
    for name, node in root["consolidated_metadata"]["metadata"].items():
        own = {key: value for key, value in node.items() if key != "consolidated_metadata"}
        files[f"{name}/{ROOT}"] = json.dumps(own, indent=2).encode()
    return files


def read_file(path: Path) -> bytes:
    """The bytes of a file of a store; CorruptStoreError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptStoreError(
            "a file of the store cannot be read", where=path, got=error.strerror, cure=REPAIR
        ) from error


def sign(document: dict[str, Any]) -> bytes:
    """A JSON document with the SHA-256 of the rest of it, among its attributes if it has some."""
    signed = copy.deepcopy(document)
    signed.get("attributes", signed)["sha256"] = _digest(document)
    return json.dumps(signed, indent=2).encode()


def read_signed(data: bytes, where: str) -> dict[str, Any]:
    """The document that `sign` wrote; CorruptStoreError where it is not JSON or its digest differs."""
    try:
        document = json.loads(data)
        stored = document.get("attributes", document).pop("sha256", None)
    except (ValueError, AttributeError) as error:
        raise CorruptStoreError("a document of the store is broken", where=where, got=error, cure=REPAIR) from None
    if stored != _digest(document):
        raise CorruptStoreError("a document of the store does not match its SHA-256", where=where, cure=REPAIR)
    return document


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
