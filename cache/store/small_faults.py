"""Faults of a store's small files that opening it does not look for."""

import hashlib
from collections.abc import Iterator

import numpy as np

from cache.errors import CorruptStoreError
from cache.geometry.views import REFLECTIONS
from cache.spec import DataIdentity
from cache.store.documents import node_files, parse_json, read_document
from cache.store.files import read_file
from cache.store.format import REPAIR
from cache.store.layout import ROOT, TOKEN, TOKEN_ORDER, VIEW_MATRIX, view_matrix_shape, whole_key
from cache.store.reader import TeacherCache


def small_faults(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    """Faults of the head's weights, the metadata of single arrays, the tokens and the view matrices."""
    for check in (_head_weights, _nodes, _array_files, _tokens, _fixed_views):
        try:
            yield from check(cache)
        except CorruptStoreError as error:
            yield error


def _head_weights(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    cache.head_weights()
    yield from ()


def _nodes(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    for key, data in node_files(read_document(cache.path, ROOT), cache.spec).items():
        where = cache.path / key
        try:
            if parse_json(read_file(cache.path, key), str(where)) != parse_json(data, str(where)):
                yield CorruptStoreError("an array's metadata differs from the root's copy", where=where, cure=REPAIR)
        except CorruptStoreError as error:
            yield error


def _array_files(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    """Files of small arrays that do not match the SHA-256 in the root."""
    dimensions = {TOKEN: 2, TOKEN_ORDER: 1, VIEW_MATRIX: len(view_matrix_shape(cache.spec))}
    for name, file in cache.attributes.small_arrays.items():
        key = whole_key(name, dimensions.get(name, 1))
        if hashlib.sha256(read_file(cache.path, key)).hexdigest() != file.sha256:
            where = cache.path / key
            yield CorruptStoreError("a small array does not match its SHA-256", where=where, cure=REPAIR)


def _tokens(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    data, where = cache.spec.data, cache.path / whole_key(TOKEN, 2)
    tokens = cache.all_tokens[:]
    found = DataIdentity.of(data.version, data.splits, tokens).tokens_sha256
    if found != data.tokens_sha256 or len(set(tokens)) != len(tokens):
        yield CorruptStoreError(
            "the tokens are not those of the store's spec",
            where=where,
            got=f"SHA-256 {found}",
            expected=data.tokens_sha256,
            cure=REPAIR,
        )
    elif any(cache.all_tokens.find(token) != position for position, token in enumerate(tokens)):
        where = cache.path / whole_key(TOKEN_ORDER, 1)
        yield CorruptStoreError("the order of the tokens does not sort them", where=where, cure=REPAIR)


def _fixed_views(cache: TeacherCache) -> Iterator[CorruptStoreError]:
    """View matrices that are not the reflections that their views are named after."""
    fixed = [np.diag([*REFLECTIONS[name], 1, 1]) for name in cache.spec.views if name in REFLECTIONS]
    stored = cache.stored_matrices[..., : len(fixed), :, :]
    if fixed and (stored != np.array(fixed, np.float32)).any():
        where = cache.path / whole_key(VIEW_MATRIX, cache.stored_matrices.ndim)
        yield CorruptStoreError("a view's matrix is not the one of its name", where=where, cure=REPAIR)
