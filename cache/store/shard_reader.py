"""The bytes of committed shards, checked.

A read is one `os.pread`, a checksum and a decompression straight into the result; the manifest says what is valid.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cache.errors import CorruptStoreError
from cache.store.format import REPAIR, checksum_of, index_bytes, read_signed, unpack_chunk, unpack_index
from cache.store.layout import SampleArray, ShardFile, ShardRecord, StoreAttributes, record_key, sample_arrays


@dataclass(frozen=True, slots=True)
class Chunk:
    """One view of a sample: the sample is number `row` of `shard`; `SampleArray.number` says which chunk that is."""

    token: str
    shard: int
    row: int
    view: int


class ShardReader:
    """Reads chunks of a store's per-sample arrays. Indexes are kept; files are opened for each read.

    Args:
        path: The store.
        attributes: Its attributes.
    """

    def __init__(self, path: Path, attributes: StoreAttributes) -> None:
        self._path = path
        self.arrays = sample_arrays(attributes.spec)
        self.size = attributes.layout.samples_per_shard
        self._files: dict[int, dict[str, ShardFile]] = {}
        self._indexes: dict[tuple[str, int], Int[np.ndarray, "_ 2"]] = {}

    def read(self, array: SampleArray, chunk: Chunk, out: np.ndarray) -> None:
        """Read one chunk into `out`, an array of its shape.

        Raises:
            CorruptStoreError: the shard is missing, cut short, another one, or does not match its checksum.
        """
        place = f"{self._path}, {array.name}, token {chunk.token}"
        offset, size = self.index(array, chunk.shard)[array.number(chunk.row, chunk.view)].tolist()
        if offset < 0:
            raise CorruptStoreError("a committed sample has no bytes", where=place, cure=REPAIR)
        unpack_chunk(self._pread(array.key(chunk.shard), offset, size, place), out, place)

    def index(self, array: SampleArray, shard: int) -> Int[np.ndarray, "_ 2"]:
        """Offset and length of a shard's chunks, read once and compared with what the manifest says of the file.

        Raises:
            CorruptStoreError: see `read`.
        """
        index = self._indexes.get((array.name, shard))
        if index is None:
            place = f"{self._path}, {array.name}, shard {shard}"
            file = self.file(array, shard)
            size = index_bytes(self.size * array.chunks)
            stored = self._pread(array.key(shard), file.bytes - size, size, place)
            if checksum_of(stored) != file.index_crc32c:
                raise CorruptStoreError("a shard is not the one that was committed", where=place, cure=REPAIR)
            index = self._indexes[array.name, shard] = unpack_index(stored, place)
        return index

    def file(self, array: SampleArray, shard: int) -> ShardFile:
        """What the manifest says of one of a shard's files.

        Raises:
            CorruptStoreError: the record is missing or broken.
        """
        if shard not in self._files:
            self._files[shard] = read_record(self._path, shard).files
        return self._files[shard][array.name]

    def _pread(self, key: str, offset: int, size: int, place: str) -> UInt8[np.ndarray, "_"]:
        try:
            file = os.open(self._path / key, os.O_RDONLY | os.O_CLOEXEC)
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


def read_record(path: Path, shard: int) -> ShardRecord:
    """The manifest's record of a committed shard.

    Raises:
        CorruptStoreError: it is missing or broken.
    """
    file = path / record_key(shard)
    return ShardRecord.parse(read_signed(read_file(file), str(file)), file)


def read_file(path: Path) -> bytes:
    """A whole file of a store.

    Raises:
        CorruptStoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptStoreError(
            "a file of the store cannot be read", where=path, got=error.strerror, cure=REPAIR
        ) from error
