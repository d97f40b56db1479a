"""Reading of committed shards.

A read is one `os.pread`, a checksum and a decompression straight into the result. The manifest decides what is valid:
each chunk is compared with the checksum that its row of its shard of its array of this store was committed with.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cache.errors import CorruptStoreError
from cache.store.documents import ShardFile, StoreAttributes, read_record
from cache.store.files import open_file, require_no_links, unreadable
from cache.store.format import (
    REPAIR,
    checksum_of,
    index_bytes,
    most_stored,
    require_chunk,
    unpack_chunk,
    unpack_index,
)
from cache.store.layout import SampleArray, sample_arrays


@dataclass(frozen=True, slots=True)
class Chunk:
    """One view of a sample, which is number `row` of `shard`; `SampleArray.chunk_number` is its position there."""

    token: str
    shard: int
    row: int
    view: int


class ShardReader:
    """Reader of chunks of a store's per-sample arrays. Indexes are kept; files are opened for each read.

    Args:
        path: The store.

    Attributes:
        arrays: The per-sample arrays by name.
        size: Samples per shard.
    """

    def __init__(self, path: Path, attributes: StoreAttributes) -> None:
        self._path, self._attributes = path, attributes
        self.arrays = sample_arrays(attributes.spec)
        self.size = attributes.layout.samples_per_shard
        self._files: dict[int, dict[str, ShardFile]] = {}
        self._indexes: dict[tuple[str, int], tuple[Int[np.ndarray, "_ 2"], list[int] | None]] = {}

    def read(self, array: str, chunk: Chunk, out: np.ndarray) -> None:
        """Read one chunk of an array into `out`, an array of its shape.

        Raises:
            CorruptStoreError: the shard or its record is missing, cut short or another one, or a checksum differs.
        """
        place = f"{self._path}, {array}, token {chunk.token}"
        number = self.arrays[array].chunk_number(chunk.row, chunk.view)
        index, checksums = self._bound_index(array, chunk.shard)
        offset, size = index[number].tolist()
        if offset < 0:
            raise CorruptStoreError("a committed sample has no bytes", where=place, cure=REPAIR)
        stored = self._pread(array, chunk.shard, offset, size, place)
        unpack_chunk(stored, out, place, None if checksums is None else checksums[number])

    def index(self, array: str, shard: int) -> Int[np.ndarray, "_ 2"]:
        """Offset and length of a shard's chunks, read once and compared with the manifest; errors as in `read`."""
        return self._bound_index(array, shard)[0]

    def file(self, array: str, shard: int) -> ShardFile:
        """The manifest's record of one of a shard's files; CorruptStoreError as in `read_record`."""
        if shard not in self._files:
            self._files[shard] = read_record(self._path, shard, self._attributes).files
        return self._files[shard][array]

    def _bound_index(self, array: str, shard: int) -> tuple[Int[np.ndarray, "_ 2"], list[int] | None]:
        """The index, and the checksum of each chunk that was committed (none in format version 1)."""
        found = self._indexes.get((array, shard))
        if found is None:
            place = f"{self._path}, {array}, shard {shard}"
            file = self.file(array, shard)
            require_no_links(self._path, self.arrays[array].key(shard))
            size = index_bytes(self.size * self.arrays[array].chunks)
            stored = self._pread(array, shard, max(0, file.bytes - size), size, place)
            index = _committed_index(stored, file, self.arrays[array], place)
            found = self._indexes[array, shard] = index, file.checksums
        return found

    def _open(self, array: str, shard: int) -> int:
        """Open a shard's file for one read."""
        return open_file(self._path / self.arrays[array].key(shard))

    def _pread(self, array: str, shard: int, offset: int, size: int, place: str) -> UInt8[np.ndarray, "_"]:
        try:
            file = self._open(array, shard)
            try:
                return _pread(file, offset, size, place)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise unreadable(self._path / self.arrays[array].key(shard), error) from error
            raise CorruptStoreError("a shard cannot be read", where=place, got=error.strerror, cure=REPAIR) from error


def require_committed(file: int, recorded: ShardFile, array: SampleArray, samples_per_shard: int, where: str) -> None:
    """Compare an open file, byte for byte, with the checksums of the shard that a record describes.

    Raises:
        CorruptStoreError: it has another size, or a checksum differs.
    """
    size = os.fstat(file).st_size
    if size != recorded.bytes:
        raise CorruptStoreError("a shard has another size", where=where, got=f"{size} bytes", expected=recorded.bytes)
    length = index_bytes(samples_per_shard * array.chunks)
    index = _committed_index(_pread(file, max(0, size - length), length, where), recorded, array, where)
    committed = index[index[:, 0] != -1]
    checksums = recorded.checksums
    if committed[:, 1].sum() + length != size or (checksums is not None and len(checksums) != len(committed)):
        raise CorruptStoreError("an index does not account for its shard", where=where, cure=REPAIR)
    for number, (offset, chunk_size) in enumerate(committed.tolist()):
        stored = _pread(file, offset, chunk_size, where)
        require_chunk(stored, where, None if checksums is None else checksums[number])


def _committed_index(
    stored: UInt8[np.ndarray, "n"], file: ShardFile, array: SampleArray, place: str
) -> Int[np.ndarray, "_ 2"]:
    """The index in its bytes; CorruptStoreError where it is another one, or leads out of its file."""
    if checksum_of(stored) != file.index_crc32c:
        raise CorruptStoreError("a shard is not the one that was committed", where=place, cure=REPAIR)
    index = unpack_index(stored, place)
    (offset, size), most = index[index[:, 0] != -1].T, most_stored(array.chunk_bytes)
    bad = (offset < 0) | (size < 0) | (size > most) | (offset > file.bytes - size)
    if bad.any():
        got = f"{size[bad][0]} bytes at {offset[bad][0]}"
        raise CorruptStoreError("an index leads out of its shard", where=place, got=got, cure=REPAIR)
    return index


def _pread(file: int, offset: int, size: int, place: str) -> UInt8[np.ndarray, "_"]:
    data = os.pread(file, size, offset)
    if len(data) != size:
        raise CorruptStoreError(
            "a shard is cut short", where=place, got=f"{len(data)} bytes", expected=size, cure=REPAIR
        )
    return np.frombuffer(data, np.uint8)
