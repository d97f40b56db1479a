"""Frames in a store: the index of its scenes, bound to the store by the root, for machines without nuScenes' tables.

They are copied into memory, as a store's small arrays are: forked processes share them.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import jaxtyped

from cache.errors import CorruptStoreError
from cache.nuscenes.columns import NO_ROW, Columns
from cache.nuscenes.index_files import FORMAT, META, Meta, TableIndex, parse_meta
from cache.nuscenes.scene_columns import ROWS_OF
from cache.store.documents import StoreAttributes, read_attributes
from cache.store.files import LARGEST_COLUMN, read_file
from cache.store.folder import StoreFolder
from cache.store.format import REPAIR
from cache.store.layout import FRAMES


@dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """The frames that a store carries, for `Frames` where there are no tables."""

    path: Path
    """The store."""

    def read(self) -> tuple[TableIndex, str] | None:
        """Their index and the version of its tables; None where the store carries no frames.

        Raises:
            StoreError: there is no store.
            CorruptStoreError: the frames are damaged, or another store's.
        """
        return read_frames(self.path, read_attributes(self.path))


@dataclass(frozen=True, kw_only=True)
class FrameFiles:
    """The files of the frames that a writer's store is to carry, by name; none where there are no tables.

    tokens: of the store's samples.
    """

    files: Mapping[str, bytes]
    tokens: Sequence[str]

    @property
    def sha256(self) -> str | None:
        """What the root says of them."""
        return hashlib.sha256(self.files[META]).hexdigest() if self.files else None

    @property
    def keys(self) -> list[str]:
        """Their paths in the store."""
        return [f"{FRAMES}/{name}" for name in self.files]

    def are_in(self, store: Path, attributes: StoreAttributes) -> bool:
        """Whether a store carries intact frames, these or others of its samples, that its root names; or needs none."""
        if not self.files:
            return True
        if attributes.frames_sha256 is None and (attributes.format_version > 1 or not (store / FRAMES).is_dir()):
            return False
        return not any(frame_faults(store, attributes, self.tokens))

    def write(self, folder: StoreFolder) -> list[str]:
        """Write those that differ from what is there; returns their paths."""
        written = [key for key, data in zip(self.keys, self.files.values(), strict=True) if folder.read(key) != data]
        for key in written:
            folder.write_durably(key, self.files[key.rpartition("/")[2]])
        return written


def read_frames(store: Path, attributes: StoreAttributes) -> tuple[TableIndex, str] | None:
    """The frames of a store whose root has these attributes; see `StoredFrames.read`."""
    meta = _read_meta(store, attributes)
    if meta is None:
        return None
    columns = {field.name: _read_column(store, field.name, meta) for field in fields(Columns)}
    _require_consistent(columns, meta, store)
    return TableIndex(columns=Columns(**columns), names=meta.names), meta.tables


def frame_faults(store: Path, attributes: StoreAttributes, tokens: Sequence[str]) -> Iterator[CorruptStoreError]:
    """Faults of the frames that a store carries, among which all of these tokens should be."""
    try:
        meta = _read_meta(store, attributes)
    except CorruptStoreError as error:
        yield error
        return
    if meta is None:
        return
    damaged = False
    for field in fields(Columns):
        try:
            _read_column(store, field.name, meta)
        except CorruptStoreError as error:
            damaged = True
            yield error
    if not damaged:
        yield from _faults_of_rows(store, attributes, tokens)


def _faults_of_rows(store: Path, attributes: StoreAttributes, tokens: Sequence[str]) -> Iterator[CorruptStoreError]:
    try:
        found = read_frames(store, attributes)
        if found is not None and (found[0].rows(tokens) < 0).any():
            yield _fault("the frames that the store carries are not those of its samples", store, "sample_token.npy")
    except CorruptStoreError as error:
        yield error


def _read_meta(store: Path, attributes: StoreAttributes) -> Meta | None:
    bound = attributes.frames_sha256
    if bound is None and not os.path.lexists(store / FRAMES):
        return None
    data = read_file(store, f"{FRAMES}/{META}")
    if bound is not None and hashlib.sha256(data).hexdigest() != bound:
        raise _fault("the frames that the store carries are damaged, or another store's", store, META)
    meta = parse_meta(data)
    if meta is None or meta.format != FORMAT:
        got = None if meta is None else f"format {meta.format}"
        raise _fault("the record of the frames that the store carries is damaged", store, META, got)
    return meta


def _read_column(store: Path, name: str, meta: Meta) -> np.ndarray:
    """A column whose file is the one that the record describes."""
    data = read_file(store, f"{FRAMES}/{name}.npy", LARGEST_COLUMN)
    if not meta.describes(name, data):
        raise _fault("a file of the frames that the store carries is damaged", store, f"{name}.npy")
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise _fault("a file of the frames that the store carries is no array", store, f"{name}.npy", error) from error


def _require_consistent(columns: dict[str, np.ndarray], meta: Meta, store: Path) -> None:
    """Raise CorruptStoreError unless the columns have the types, lengths and row numbers of an index."""
    what = "the columns of the frames that the store carries do not fit each other"
    with jaxtyped("context"):
        for field in fields(Columns):
            if not isinstance(found := columns[field.name], field.type):  # type: ignore[arg-type]
                raise _fault(what, store, f"{field.name}.npy", f"{found.dtype} {found.shape}")
    names, boxes = meta.names, len(columns["box_center"])
    limits = {name: (NO_ROW, len(columns[of])) for name, of in ROWS_OF.items()}
    limits |= {"sample_scene": (0, len(names.scenes)), "box_category": (0, len(names.categories))}
    limits |= {"sample_boxes": (0, boxes + 1)}
    for name, (lowest, limit) in limits.items():
        rows = columns[name]
        if rows.min(initial=lowest) < lowest or rows.max(initial=lowest) >= max(limit, lowest + 1):
            raise _fault(what, store, f"{name}.npy", f"rows {rows.min()} .. {rows.max()} of {limit}")


def _fault(what: str, store: Path, name: str, got: object = None) -> CorruptStoreError:
    return CorruptStoreError(what, where=store / FRAMES / name, got=got, cure=REPAIR)
