"""Arrays of a store in one chunk, and its tokens among them.

They are copied into memory (forked processes share it): of a mapped file, one that replaces the store would change
what a reader holds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cache.errors import CorruptStoreError
from cache.store.documents import ArrayFile
from cache.store.files import read_checked
from cache.store.format import CHECKSUM_BYTES, REPAIR, checksum_of
from cache.store.layout import TOKEN, TOKEN_ORDER, whole_key


def read_array(
    store: Path, name: str, dtype: str, shape: tuple[int, ...], expected: ArrayFile | None = None
) -> np.ndarray:
    """An array in one chunk, read-only.

    Args:
        shape: one length may be -1.
        expected: the file that belongs to the store; None in format version 1.

    Raises:
        CorruptStoreError: it is missing, damaged, of another size, or another store's.
    """
    key = whole_key(name, len(shape))
    stored = read_checked(store, key)
    stored.flags.writeable = False
    body = stored[:-CHECKSUM_BYTES]
    if expected is not None and (expected.size, expected.crc32c) != (len(stored), checksum_of(stored)):
        raise CorruptStoreError("a small array is whole, but not this store's", where=store / key, cure=REPAIR)
    try:
        return body.view(dtype).reshape(shape)
    except ValueError as error:
        raise CorruptStoreError(
            "a small array has another size", where=store / key, got=error, expected=shape, cure=REPAIR
        ) from error


class Tokens(Sequence[str]):
    """The tokens of a store in dump order, searched as they are stored: opening takes no time for each sample.

    Args:
        names: The tokens as bytes, padded with zeros.
        order: The order that sorts them.
    """

    def __init__(self, names: np.ndarray, order: Int[np.ndarray, "N"]) -> None:
        self._names, self._order = names, order

    @classmethod
    def open(cls, store: Path, samples: int, files: Mapping[str, ArrayFile]) -> "Tokens":
        """The tokens of a store's samples; errors as in `read_array`.

        Args:
            files: the root's; empty in format version 1.
        """
        names = read_array(store, TOKEN, "u1", (samples, -1), files.get(TOKEN))
        order = read_array(store, TOKEN_ORDER, "<i8", (samples,), files.get(TOKEN_ORDER))
        if not names.size or order.min(initial=0) < 0 or order.max(initial=0) >= samples:
            where = store / whole_key(TOKEN_ORDER, 1)
            raise CorruptStoreError("the order of the tokens is no order", where=where, cure=REPAIR)
        return cls(names.reshape(-1).view(f"S{names.shape[1]}"), order)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: Any) -> Any:
        try:
            if isinstance(key, slice):
                return tuple(name.decode() for name in self._names[key].tolist())
            return self._names[key].decode()
        except UnicodeDecodeError as error:
            raise CorruptStoreError("a token is no text", where=TOKEN, got=error, cure=REPAIR) from None

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self.find(token) is not None

    def find(self, token: str) -> int | None:
        """The position of a token; None where there is no such token."""
        name = token.encode(errors="surrogatepass")
        if len(name) > self._names.itemsize:
            return None
        key = np.array(name, dtype=self._names.dtype)
        place = int(np.searchsorted(self._names, key, sorter=self._order))
        if place == len(self) or self._names[self._order[place]] != name:
            return None
        return int(self._order[place])
