"""Checks before a store is written to."""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Float

from cache.errors import CorruptStoreError, DataError, MismatchError, StoreError
from cache.spec import CacheSpec, DataIdentity
from cache.store.documents import StoreAttributes
from cache.store.format import with_checksum
from cache.store.layout import LOCK, ROOT, VIEW_MATRIX, whole_key
from cache.store.small_arrays import read_array


def require_free_folder(path: Path, created: Callable[[], Collection[str]]) -> None:
    """Raise StoreError unless a folder is absent, empty, a store by its root, or all that it holds was being created.

    Args:
        created: the keys of the files that a creation writes before the root.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())) or (path / ROOT).is_file():
        return
    found = {str(file.relative_to(path)) for file in path.rglob("*")} if path.is_dir() else {path.name}
    foreign = sorted(found - _begun(created(), found)) if path.is_dir() else [path.name]
    if foreign:
        raise StoreError(
            "the place of the store is taken by something else",
            where=path,
            got=f"{foreign[0]}, and no {ROOT}",
            expected="a store, an empty folder, or nothing",
            cure="Dump to another path",
        )


def _begun(created: Collection[str], found: Collection[str]) -> set[str]:
    """What a killed creation may have left: its files, their partial ones, and their folders."""
    files = {key for key in found if re.sub(r"\.\d+\.partial$", "", key) in {*created, ROOT, LOCK}}
    folders = {str(folder) for key in (*created, LOCK) for folder in PurePath(key).parents}
    return files | folders


def require_same_matrices(path: Path, attributes: StoreAttributes, matrices: Float[np.ndarray, "*n 4 4"]) -> None:
    """Raise MismatchError if a store has other view matrices: a version of numpy may draw others from the same seed."""
    expected = with_checksum(matrices.tobytes())
    if attributes.small_arrays:
        same = attributes.small_arrays[VIEW_MATRIX].sha256 == hashlib.sha256(expected).hexdigest()
    else:
        try:
            same = read_array(path, VIEW_MATRIX, "<f4", matrices.shape).tobytes() == matrices.tobytes()
        except CorruptStoreError:  # a repair writes it again
            return
    if not same:
        raise MismatchError(
            "the drawn views are not those of the store",
            where=path / whole_key(VIEW_MATRIX, matrices.ndim),
            got=f"other numbers from numpy {np.__version__}",
            cure="Go on with the version of numpy that `cli inspect` shows under software",
        )


def require_tokens(spec: CacheSpec, tokens: Sequence[str]) -> None:
    """Raise DataError unless the tokens can name samples and are those of the spec."""
    bad = [token for token in tokens if not token or "\0" in token]
    if bad or len(set(tokens)) != len(tokens) or not tokens:
        raise DataError(
            "the tokens cannot name samples",
            got=f"{len(tokens)} tokens, {len(set(tokens))} different, {len(bad)} empty or with a zero byte",
            cure="Correct the tokens in sample.json",
        )
    identity = DataIdentity.of(spec.data.version, spec.data.splits, tuple(tokens), spec.data.lidar)
    if identity != spec.data:
        raise DataError("the tokens are not those of the spec", got=identity, expected=spec.data)
