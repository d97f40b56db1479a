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
REPAIR = "Repair the store with `cli verify STORE --repair CONFIG` and the dump's other options, or copy it again"
DISTRUST = "Do not use this store unless you know who made it"

HEADER_BYTES = 18
"""Of a zstd frame, at most."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ABSENT = np.uint64(2**64 - 1)


def pack_chunk(values: np.ndarray, level: int) -> bytes:
    """One sample and view, of any shape, as stored: zstd, then the checksum of the compressed bytes."""
    return with_checksum(zstd.compress(np.ascontiguousarray(values), level))


def unpack_chunk(stored: UInt8[np.ndarray, "n"], out: np.ndarray, where: str, crc32c: int | None = None) -> None:
    """Decompress a chunk into `out`, whose shape is the chunk's.

    Args:
        crc32c: that of the chunk that was committed; None where the manifest has none (format version 1).

    Raises:
        CorruptStoreError: its checksum does not match, it is another chunk, or it does not fill `out`.
    """
    body = require_chunk(stored, where, crc32c)
    size = content_size(body[:HEADER_BYTES].tobytes())
    if size is None:
        raise CorruptStoreError(
            "a chunk cannot be decompressed", where=where, expected="a zstd frame with its size", cure=REPAIR
        )
    if size != out.nbytes:
        what = "a chunk does not fill its place"
        raise CorruptStoreError(what, where=where, got=f"{size} bytes", expected=out.nbytes, cure=REPAIR)
    try:
        zstd.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError("a chunk cannot be decompressed", where=where, got=error, cure=REPAIR) from error


def require_chunk(stored: UInt8[np.ndarray, "n"], where: str, crc32c: int | None) -> UInt8[np.ndarray, "_"]:
    """The zstd frame of a chunk; CorruptStoreError where a checksum does not match, as in `unpack_chunk`."""
    body = checked(stored, where)
    if crc32c is not None and checksum_of(stored) != crc32c:
        raise CorruptStoreError("a chunk is whole, but not the one that was committed", where=where, cure=REPAIR)
    return body


def content_size(header: bytes) -> int | None:
    """The size of what a zstd frame holds, from its first bytes (RFC 8878, 3.1.1); None where it does not say.

    The decompressor leaves the rest of a larger buffer as it was.
    """
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        return None
    single, flag = header[4] >> 5 & 1, header[4] >> 6
    begin = 5 + (not single) + (0, 1, 2, 4)[header[4] & 3]
    width = (single, 2, 4, 8)[flag]
    if not width or len(header) < begin + width:
        return None
    return int.from_bytes(header[begin : begin + width], "little") + (256 if flag == 1 else 0)


def most_stored(size: int) -> int:
    """The largest chunk of `size` bytes of values: incompressible ones (zstd.h, ZSTD_COMPRESSBOUND) and a checksum."""
    return size + (size >> 8) + 64 + CHECKSUM_BYTES


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
