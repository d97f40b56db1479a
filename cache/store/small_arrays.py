"""The arrays of a store that are one chunk, mapped into memory: all processes that read them share the pages."""

from pathlib import Path

import numpy as np

from cache.errors import CorruptStoreError
from cache.store.format import REPAIR, checked
from cache.store.layout import whole_key


def map_array(store: Path, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array in one chunk, read-only; one length of `shape` may be -1.

    Raises:
        CorruptStoreError: it cannot be read, does not match its checksum, or has another size.
    """
    path = store / whole_key(name, len(shape))
    try:
        stored = np.memmap(path, dtype=np.uint8, mode="r")
        return checked(stored, str(path)).view(dtype).reshape(shape).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise CorruptStoreError("a small array cannot be read", where=path, got=error, cure=REPAIR) from error
