"""Arrays of a store in one chunk, mapped into memory (processes share the pages), and its tokens among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cache.errors import CorruptStoreError
from cache.store.format import REPAIR, checked
from cache.store.layout import TOKEN, TOKEN_ORDER, whole_key


def map_array(store: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array in one chunk, read-only; CorruptStoreError where it is missing, damaged or of another size.

    Args:
        shape: one length may be -1.
    """
    path = store / whole_key(name, len(shape))
    try:
        stored = np.memmap(path, dtype=np.uint8, mode="r")
        return checked(stored, str(path)).view(dtype).reshape(shape).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise CorruptStoreError("a small array cannot be read", where=path, got=error, cure=REPAIR) from error


class Tokens(Sequence[str]):
    """The tokens of a store in dump order, searched in the mapped file: opening takes no time for each sample.

    Args:
        names: The tokens as bytes, padded with zeros.
        order: The order that sorts them.
    """

    def __init__(self, names: np.ndarray, order: Int[np.ndarray, "N"]) -> None:
        self._names, self._order = names, order

    @classmethod
    def open(cls, store: Path, samples: int) -> "Tokens":
        """The tokens of a store's samples; errors as in `map_array`."""
        names = map_array(store, TOKEN, "u1", (samples, -1))
        return cls(names.reshape(-1).view(f"S{names.shape[1]}"), map_array(store, TOKEN_ORDER, "<i8", (samples,)))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(name.decode() for name in self._names[key].tolist())
        return self._names[key].decode()

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self.find(token) is not None

    def find(self, token: str) -> int | None:
        """The position of a token; None where there is no such token."""
        name = token.encode()
        if len(name) > self._names.itemsize:
            return None
        key = np.array(name, dtype=self._names.dtype)
        place = int(np.searchsorted(self._names, key, sorter=self._order))
        if place == len(self) or self._names[self._order[place]] != name:
            return None
        return int(self._order[place])
