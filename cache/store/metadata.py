"""The files of a store other than shards and manifest: Zarr metadata, tokens, view matrices, the head's weights."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import safetensors.torch
import zarr
from torch import Tensor
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from cache.geometry.views import view_matrices
from cache.spec import CacheSpec
from cache.store.documents import ArrayFile, StoreAttributes, sign
from cache.store.format import with_checksum
from cache.store.layout import (
    HEAD_WEIGHTS,
    ROOT,
    TOKEN,
    TOKEN_ORDER,
    VIEW_MATRIX,
    sample_arrays,
    view_matrix_shape,
)

_DIMENSIONS = {
    TOKEN: ("sample", "token_byte"),
    TOKEN_ORDER: ("sample",),
    VIEW_MATRIX: ("sample", "view", "row", "column"),
}


def small_files(
    attributes: StoreAttributes, tokens: Sequence[str], head_weights: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """All of them, by path; the root comes last: a store without one has yet to be created."""
    files = zarr_files(attributes, tokens)
    root = json.loads(files.pop(ROOT))
    return {HEAD_WEIGHTS: weights_file(head_weights), **files, ROOT: sign(root)}


def zarr_files(attributes: StoreAttributes, tokens: Sequence[str]) -> dict[str, bytes]:
    """The files that zarr itself writes, by path: metadata, consolidated in the root, and the arrays in one chunk."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), attributes=attributes.to_json())
    create = partial(
        group.create_array,
        serializer=BytesCodec(endian="little"),
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    for array in sample_arrays(attributes.spec).values():
        axes = ("sample",) if array.views is None else ("sample", "view")
        create(
            array.name,
            dtype=array.dtype,
            shape=(len(tokens), *array.sample_shape),
            chunks=(1,) * len(axes) + array.shape,
            shards=(attributes.layout.samples_per_shard, *array.sample_shape),
            compressors=[ZstdCodec(level=attributes.layout.zstd_level), Crc32cCodec()],
            dimension_names=axes + array.dims,
        )
    for name, values in small_arrays(attributes.spec, tokens).items():
        dims = _DIMENSIONS[name][-values.ndim :]
        create(name, data=values, chunks=values.shape, compressors=Crc32cCodec(), dimension_names=dims)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group.store)
    return {path: content.to_bytes() for path, content in files.items()}


def small_arrays(spec: CacheSpec, tokens: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays in one chunk, by name: tokens (N, bytes), their order (N,), matrices (V, 4, 4) or (N, V, 4, 4)."""
    names = np.array([token.encode() for token in tokens])
    return {
        TOKEN: names.view(np.uint8).reshape(len(names), -1),
        TOKEN_ORDER: np.argsort(names, kind="stable").astype("<i8"),
        VIEW_MATRIX: view_matrix(spec, tokens),
    }


def small_array_files(spec: CacheSpec, tokens: Sequence[str]) -> dict[str, ArrayFile]:
    """What the root says of the arrays in one chunk, by name."""
    return {name: ArrayFile.of(with_checksum(values.tobytes())) for name, values in small_arrays(spec, tokens).items()}


def view_matrix(spec: CacheSpec, tokens: Sequence[str]) -> np.ndarray:
    """The array `view_matrix`: (V, 4, 4), or (N, V, 4, 4) where some views are drawn for each sample."""
    different = tokens if spec.drawn else tokens[:1]
    matrices = [view_matrices(spec.views, spec.drawn, token) for token in different]
    return np.stack(matrices).astype("<f4").reshape(view_matrix_shape(spec))


def weights_file(tensors: Mapping[str, Tensor]) -> bytes:
    """The head's weights as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
