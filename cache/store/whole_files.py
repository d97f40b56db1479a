"""The files of a store that are read whole, beside its root and records, and how each is checked."""

import hashlib
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import numpy as np

from cache.errors import CorruptStoreError
from cache.nuscenes.columns import Columns
from cache.nuscenes.index_files import META, Meta, parse_meta
from cache.store.documents import LARGEST_DOCUMENT, ArrayFile, StoreAttributes
from cache.store.files import LARGEST_COLUMN, LARGEST_FILE
from cache.store.format import REPAIR, checked
from cache.store.layout import (
    FRAMES,
    HEAD_WEIGHTS,
    MANIFEST,
    ROOT,
    TOKEN,
    TOKEN_ORDER,
    VIEW_MATRIX,
    view_matrix_shape,
    whole_key,
)

Check = Callable[[bytes], object]
"""Raises CorruptStoreError where a file has other bytes than it should have."""

FRAMES_RECORD = f"{FRAMES}/{META}"


def most_bytes(key: str) -> int:
    """The size that a file which is read whole may have."""
    if key == ROOT or key.startswith(f"{MANIFEST}/"):
        return LARGEST_DOCUMENT
    return LARGEST_COLUMN if key.startswith(f"{FRAMES}/") else LARGEST_FILE


def small_file_checks(attributes: StoreAttributes, store: str) -> dict[str, Check]:
    """The check of each array in one chunk and of the head's weights, by key.

    Args:
        store: named in errors.
    """
    checks: dict[str, Check] = {}
    for name, dimensions in {TOKEN: 2, TOKEN_ORDER: 1, VIEW_MATRIX: len(view_matrix_shape(attributes.spec))}.items():
        key = whole_key(name, dimensions)
        checks[key] = partial(_require_array, attributes.small_arrays.get(name), f"{store}/{key}")
    checks[HEAD_WEIGHTS] = partial(_require_sha256, attributes.head_weights_sha256, f"{store}/{HEAD_WEIGHTS}")
    return checks


def require_frames_record(attributes: StoreAttributes, store: str, data: bytes) -> None:
    """Raise CorruptStoreError unless the bytes are the record of a store's frames, which its root may name."""
    where = f"{store}/{FRAMES_RECORD}"
    if attributes.frames_sha256 is not None:
        _require_sha256(attributes.frames_sha256, where, data)
    if parse_meta(data) is None:
        raise _damaged(where)


def frame_file_checks(record: bytes, store: str) -> dict[str, Check]:
    """The check of each column of the frames that a store carries, by key."""
    meta = parse_meta(record)
    keys = {field.name: f"{FRAMES}/{field.name}.npy" for field in fields(Columns)}
    return {key: partial(_require_column, meta, name, f"{store}/{key}") for name, key in keys.items()}


def _require_array(expected: ArrayFile | None, where: str, data: bytes) -> None:
    checked(np.frombuffer(data, np.uint8), where)
    if expected is not None and ArrayFile.of(data) != expected:
        raise CorruptStoreError("a small array is whole, but not this store's", where=where, cure=REPAIR)


def _require_sha256(expected: str, where: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != expected:
        raise _damaged(where)


def _require_column(meta: Meta | None, name: str, where: str, data: bytes) -> None:
    if meta is None or not meta.describes(name, data):
        raise _damaged(where)


def _damaged(where: str) -> CorruptStoreError:
    return CorruptStoreError("a file of the store does not match its checksum", where=where, cure=REPAIR)
