"""An index on disk: a folder of one .npy file for each column, memory-mapped, and a record of their checksums."""

import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import google_crc32c
import msgspec
import numpy as np
from jaxtyping import Int

from cache.errors import DataError
from cache.nuscenes.columns import Columns, Names

FORMAT = 1
"""Of the columns; another number makes every index again."""

META = "index.json"
CHECKED_BYTES = 4 << 20


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What index.json holds: of which tables the columns are, and their sizes and CRC-32C."""

    format: int
    tables: str
    identity: str
    names: Names
    files: dict[str, tuple[int, int]]

    def describes(self, column: str, data: bytes) -> bool:
        """Whether these are the bytes of a column's file."""
        return (len(data), google_crc32c.value(data)) == self.files.get(column)


@dataclass(frozen=True, kw_only=True)
class TableIndex:
    """A version's columns; pickled, it is a path that is opened where it arrives.

    path: its folder; None where it is kept in memory only.
    """

    columns: Columns
    names: Names
    path: Path | None = None

    def __reduce__(self) -> tuple:
        if self.path is None:
            return _in_memory, (self.columns, self.names)
        return _reopened, (self.path,)

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(getattr(self.columns, field.name).nbytes for field in fields(Columns))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The key frames', in the tables' order."""
        return tuple(token.decode() for token in self.columns.sample_token.tolist())

    def row(self, token: str) -> int | None:
        """The key frame's row, None where there is none."""
        (row,) = self.rows([token])
        return None if row < 0 else int(row)

    def rows(self, tokens: Sequence[str]) -> Int[np.ndarray, "tokens"]:
        """Each key frame's row, -1 where there is none."""
        stored, order = self.columns.sample_token, self.columns.sample_order
        wanted = np.array([token.encode() for token in tokens], dtype=np.bytes_)
        if not len(stored) or not len(wanted):
            return np.full(len(wanted), -1)
        found = order[np.minimum(np.searchsorted(stored, wanted, sorter=order), len(stored) - 1)]
        return np.where(stored[found] == wanted, found, -1)


class IndexFiles(Mapping[str, bytes]):
    """The files of an index by name, each made when it is asked for; the record of the others comes last.

    Args:
        tables: what the index is made of.
    """

    def __init__(self, columns: Columns, names: Names, tables: str, identity: str = "") -> None:
        self._columns, self._names, self._tables, self._identity = columns, names, tables, identity

    def __getitem__(self, name: str) -> bytes:
        if name == META:
            return self._meta
        file = io.BytesIO()
        np.save(file, getattr(self._columns, name.removesuffix(".npy")), allow_pickle=False)
        return file.getvalue()

    def __iter__(self) -> Iterator[str]:
        yield from (f"{field.name}.npy" for field in fields(Columns))
        yield META

    def __len__(self) -> int:
        return len(fields(Columns)) + 1

    @cached_property
    def _meta(self) -> bytes:
        columns = (name for name in self if name != META)
        files = {name.removesuffix(".npy"): (len(data := self[name]), google_crc32c.value(data)) for name in columns}
        meta = Meta(format=FORMAT, tables=self._tables, identity=self._identity, names=self._names, files=files)
        text = msgspec.json.encode(meta)
        return text + f"\n{google_crc32c.value(text)}".encode()


def write_index(files: IndexFiles, path: Path) -> None:
    """Write an index beside its name, and rename it over one that is there.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir()
        for name, data in files.items():
            (beside / name).write_bytes(data)
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_index(path: Path) -> tuple[TableIndex, str] | list[str]:
    """An index whose every byte is as it was written, and what it is made of; or else the names of damaged files."""
    meta = _meta(path)
    if meta is None or meta.format != FORMAT:
        return [META]
    damaged = [f"{name}.npy" for name, expected in meta.files.items() if not _intact(path, name, expected)]
    return damaged or (_mapped(path, meta), meta.tables)


def _intact(path: Path, name: str, size_and_crc: tuple[int, int]) -> bool:
    file = path / f"{name}.npy"
    try:
        return (file.stat().st_size, _crc(file)) == tuple(size_and_crc)
    except OSError:
        return False


def parse_meta(data: bytes) -> Meta | None:
    """What the bytes of an index.json hold; None where they are damaged."""
    try:
        text, _, crc = data.rpartition(b"\n")
        return msgspec.json.decode(text, type=Meta) if google_crc32c.value(text) == int(crc) else None
    except (ValueError, RecursionError, msgspec.DecodeError):
        return None


def _meta(path: Path) -> Meta | None:
    try:
        return parse_meta((path / META).read_bytes())
    except OSError:
        return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHECKED_BYTES):
            crc = google_crc32c.extend(crc, chunk)
    return crc


def _mapped(path: Path, meta: Meta) -> TableIndex:
    # As plain arrays: indexing np.memmap itself takes several times as long.
    columns = {
        field.name: np.load(path / f"{field.name}.npy", mmap_mode="r").view(np.ndarray) for field in fields(Columns)
    }
    return TableIndex(columns=Columns(**columns), names=meta.names, path=path)


def _reopened(path: Path) -> TableIndex:
    """In another process, which trusts what the first one has checked."""
    meta = _meta(path)
    if meta is None:
        raise DataError(
            "the index of the tables is gone",
            where=path,
            got="no such folder, or a damaged one",
            cure="Run the command again",
        )
    return _mapped(path, meta)


def _in_memory(columns: Columns, names: Names) -> TableIndex:
    return TableIndex(columns=columns, names=names)
