import numpy as np
import pytest

from cache.errors import CorruptStoreError
from cache.store.format import checked, pack_chunk, pack_index, unpack_chunk, unpack_index, with_checksum


def test_chunk_there_and_back():
    values = np.random.default_rng(0).integers(0, 9, (3, 5, 7)).astype(np.uint8)
    out = np.empty_like(values)
    unpack_chunk(np.frombuffer(pack_chunk(values, 1), np.uint8), out, "here")
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("damage", [b"", b"abc", b"abcd"])
def test_bytes_too_few_for_a_checksum(damage):
    with pytest.raises(CorruptStoreError, match="checksum"):
        checked(np.frombuffer(damage, np.uint8), "here")


def test_crc32c_of_the_standard_check_value():
    assert with_checksum(b"123456789")[-4:] == (0xE3069283).to_bytes(4, "little")


def test_index_by_hand():
    index = unpack_index(np.frombuffer(pack_index([5, 7], chunks=3), np.uint8), "here")
    assert index.tolist() == [[0, 5], [5, 7], [-1, -1]]


def test_a_chunk_that_is_no_zstd_frame():
    stored = np.frombuffer(with_checksum(b"not a frame"), np.uint8)
    with pytest.raises(CorruptStoreError, match="cannot be decompressed"):
        unpack_chunk(stored, np.empty(4, np.uint8), "here")
