"""Reading of committed shards.

A read is one `os.pread`, a checksum and a decompression straight into the result; the manifest decides what is valid.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cache.errors import CorruptStoreError
from cache.store.documents import ShardFile, StoreAttributes, read_record
from cache.store.format import REPAIR, checksum_of, index_bytes, unpack_chunk, unpack_index
from cache.store.layout import sample_arrays


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
        self._path = path
        self.arrays = sample_arrays(attributes.spec)
        self.size = attributes.layout.samples_per_shard
        self._files: dict[int, dict[str, ShardFile]] = {}
        self._indexes: dict[tuple[str, int], Int[np.ndarray, "_ 2"]] = {}

    def read(self, array: str, chunk: Chunk, out: np.ndarray) -> None:
        """Read one chunk of an array into `out`, an array of its shape.

        Raises:
            CorruptStoreError: the shard is missing, cut short, another one, or does not match its checksum.
        """
        place = f"{self._path}, {array}, token {chunk.token}"
        number = self.arrays[array].chunk_number(chunk.row, chunk.view)
        offset, size = self.index(array, chunk.shard)[number].tolist()
        if offset < 0:
            raise CorruptStoreError("a committed sample has no bytes", where=place, cure=REPAIR)
        unpack_chunk(self._pread(array, chunk.shard, offset, size, place), out, place)

    def index(self, array: str, shard: int) -> Int[np.ndarray, "_ 2"]:
        """Offset and length of a shard's chunks, read once and compared with the manifest; errors as in `read`."""
        index = self._indexes.get((array, shard))
        if index is None:
            place = f"{self._path}, {array}, shard {shard}"
            file = self.file(array, shard)
            size = index_bytes(self.size * self.arrays[array].chunks)
            stored = self._pread(array, shard, file.bytes - size, size, place)
            if checksum_of(stored) != file.index_crc32c:
                raise CorruptStoreError("a shard is not the one that was committed", where=place, cure=REPAIR)
            index = self._indexes[array, shard] = unpack_index(stored, place)
        return index

    def file(self, array: str, shard: int) -> ShardFile:
        """The manifest's record of one of a shard's files; CorruptStoreError where it is missing or broken."""
        if shard not in self._files:
            self._files[shard] = read_record(self._path, shard).files
        return self._files[shard][array]

    def _pread(self, array: str, shard: int, offset: int, size: int, place: str) -> UInt8[np.ndarray, "_"]:
        try:
            file = os.open(self._path / self.arrays[array].key(shard), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(file, size, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise CorruptStoreError("a shard cannot be read", where=place, got=error.strerror, cure=REPAIR) from error
        if len(data) != size:
            raise CorruptStoreError(
                "a shard is cut short", where=place, got=f"{len(data)} bytes", expected=size, cure=REPAIR
            )
        return np.frombuffer(data, np.uint8)
