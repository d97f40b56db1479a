"""The tokens of a store, in dump order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


class Tokens(Sequence[str]):
    """The tokens of a store in dump order, searched where they lie on disk: opening costs nothing for each sample."""

    def __init__(self, names: np.ndarray, order: Int[np.ndarray, "N"]) -> None:
        self._names, self._order = names, order

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
