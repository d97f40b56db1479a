"""Checks before a store is written to."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cache.errors import CorruptStoreError, DataError, MismatchError, StoreError
from cache.spec import CacheSpec, DataIdentity
from cache.store.layout import MANIFEST, VIEW_MATRIX, whole_key
from cache.store.small_arrays import map_array


def require_free_folder(path: Path) -> None:
    """Raise StoreError unless a folder is absent, empty, or has a manifest, which is created first."""
    if not path.exists() or (path / MANIFEST).is_dir():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise StoreError(
            "the place of the store is taken by something else",
            where=path,
            expected="a store, an empty folder, or nothing",
            cure="Dump to another path",
        )


def require_same_matrices(path: Path, matrices: Float[np.ndarray, "*n 4 4"]) -> None:
    """Raise MismatchError if a store has other view matrices: a version of numpy may draw others from the same seed."""
    with suppress(CorruptStoreError):  # a repair writes it again
        stored = map_array(path, VIEW_MATRIX, "<f4", matrices.shape)
        if stored.tobytes() != matrices.tobytes():
            raise MismatchError(
                "the drawn views are not those of the store",
                where=path / whole_key(VIEW_MATRIX, matrices.ndim),
                got=f"other numbers from numpy {np.__version__}",
                cure="Go on with the version of numpy that the store's `software` names",
            )


def require_tokens(spec: CacheSpec, tokens: Sequence[str]) -> None:
    """Raise DataError unless the tokens can name samples and are those of the spec."""
    bad = [token for token in tokens if not token or "\0" in token]
    if bad or len(set(tokens)) != len(tokens) or not tokens:
        raise DataError(
            "the tokens cannot name samples",
            got=f"{len(tokens)} tokens, {len(set(tokens))} different, {len(bad)} empty or with a zero byte",
            cure="Check sample.json",
        )
    identity = DataIdentity.of(spec.data.version, spec.data.splits, tuple(tokens), spec.data.lidar)
    if identity != spec.data:
        raise DataError("the tokens are not those of the spec", got=identity, expected=spec.data)
