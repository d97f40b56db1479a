"""Bytes under checksums: the chunks of a shard and its index.

A shard file of Zarr v3 ("sharding_indexed", zarr-specs) is its chunks one after another, then the index: offset and
length of each chunk as little-endian uint64, both 2^64 - 1 where a chunk is absent, and a crc32c. A chunk here is
a zstd frame and its crc32c.
"""

import google_crc32c
import numpy as np
from jaxtyping import Int, UInt8
from numcodecs import zstd

from cache.errors import CorruptStoreError

CHECKSUM_BYTES = 4
REPAIR = "Run `cli verify` on the store, then repair it or restore it from a copy"

_ABSENT = np.uint64(2**64 - 1)


def pack_chunk(values: np.ndarray, level: int) -> bytes:
    """One sample and view, of any shape, as stored: zstd, then the checksum of the compressed bytes."""
    return with_checksum(zstd.compress(np.ascontiguousarray(values), level))


def unpack_chunk(stored: UInt8[np.ndarray, "n"], out: np.ndarray, where: str) -> None:
    """Decompress a chunk into `out` of any shape; CorruptStoreError where checksum or length does not match."""
    body = checked(stored, where)
    try:
        zstd.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError("a chunk cannot be decompressed", where=where, got=error, cure=REPAIR) from error


def with_checksum(data: bytes) -> bytes:
    """Data and its crc32c, as Zarr's codec writes it."""
    return data + google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


def checked(stored: UInt8[np.ndarray, "n"], where: str) -> UInt8[np.ndarray, "_"]:
    """The data before a crc32c; CorruptStoreError where it does not match."""
    body = stored[:-CHECKSUM_BYTES]
    if stored.size < CHECKSUM_BYTES or checksum_of(stored) != google_crc32c.value(body):
        raise CorruptStoreError("stored bytes do not match their checksum", where=where, cure=REPAIR)
    return body


def checksum_of(stored: UInt8[np.ndarray, "n"]) -> int:
    """The crc32c that ends some stored bytes."""
    return int.from_bytes(stored[-CHECKSUM_BYTES:].tobytes(), "little")


def index_bytes(chunks: int) -> int:
    """The length of the index that ends a shard file."""
    return 16 * chunks + CHECKSUM_BYTES


def pack_index(sizes: list[int], chunks: int) -> bytes:
    """The index of a shard whose first chunks lie one after another from its start; the rest are absent."""
    index = np.full((chunks, 2), _ABSENT, dtype="<u8")
    index[: len(sizes), 1] = sizes
    index[: len(sizes), 0] = np.cumsum([0, *sizes[:-1]]) if sizes else 0
    return with_checksum(index.tobytes())


def unpack_index(stored: UInt8[np.ndarray, "n"], where: str) -> Int[np.ndarray, "chunks 2"]:
    """Offset and length of each chunk in a shard file, -1 where it is absent; CorruptStoreError as in `checked`."""
    return checked(stored, where).view("<i8").reshape(-1, 2)
