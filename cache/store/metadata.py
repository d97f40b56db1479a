"""The files of a store other than shards and manifest: Zarr metadata, tokens, view matrices, the head's weights."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import safetensors.torch
import zarr
from torch import Tensor
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from cache.geometry.views import view_matrices
from cache.spec import CacheSpec
from cache.store.documents import StoreAttributes, node_files, sign
from cache.store.format import with_checksum
from cache.store.layout import (
    HEAD_WEIGHTS,
    ROOT,
    TOKEN,
    TOKEN_ORDER,
    VIEW_MATRIX,
    sample_arrays,
    view_matrix_shape,
    whole_key,
)


def small_files(
    attributes: StoreAttributes, tokens: Sequence[str], head_weights: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """All of them, by path; the root comes last: a store without one has yet to be created."""
    root = root_document(attributes, tokens)
    return {**data_files(attributes.spec, tokens, head_weights), **node_files(root), ROOT: sign(root)}


def data_files(spec: CacheSpec, tokens: Sequence[str], head_weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The head's weights and the chunks of the arrays in one chunk, by path."""
    names = _names(tokens)
    whole = {
        TOKEN: names.view(np.uint8).reshape(len(names), -1),
        TOKEN_ORDER: np.argsort(names, kind="stable").astype("<i8"),
        VIEW_MATRIX: view_matrix(spec, tokens),
    }
    files = {whole_key(name, values.ndim): with_checksum(values.tobytes()) for name, values in whole.items()}
    return {HEAD_WEIGHTS: weights_file(head_weights), **files}


def view_matrix(spec: CacheSpec, tokens: Sequence[str]) -> np.ndarray:
    """The array `view_matrix`: (V, 4, 4), or (N, V, 4, 4) where some views are drawn for each sample."""
    different = tokens if spec.drawn else tokens[:1]
    matrices = [view_matrices(spec.views, spec.drawn, token) for token in different]
    return np.stack(matrices).astype("<f4").reshape(view_matrix_shape(spec))


def weights_file(tensors: Mapping[str, Tensor]) -> bytes:
    """The head's weights as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})


def root_document(attributes: StoreAttributes, tokens: Sequence[str]) -> dict[str, Any]:
    """The group's zarr.json, which zarr itself writes: our attributes, and the consolidated metadata of all arrays."""
    documents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(documents), attributes=attributes.model_dump(mode="json"))
    create = partial(
        group.create_array,
        serializer=BytesCodec(endian="little"),
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    spec, layout, samples = attributes.spec, attributes.layout, attributes.spec.data.samples
    for array in sample_arrays(spec).values():
        axes = ("sample",) if array.views is None else ("sample", "view")
        create(
            array.name,
            dtype=array.dtype,
            shape=(samples, *array.sample_shape),
            chunks=(1,) * len(axes) + array.shape,
            shards=(layout.samples_per_shard, *array.sample_shape),
            compressors=[ZstdCodec(level=layout.zstd_level), Crc32cCodec()],
            dimension_names=axes + array.dims,
        )
    matrix_shape = view_matrix_shape(spec)
    for name, dtype, shape, dims in (
        (TOKEN, "uint8", (samples, _names(tokens).itemsize), ("sample", "token_byte")),
        (TOKEN_ORDER, "int64", (samples,), ("sample",)),
        (VIEW_MATRIX, "float32", matrix_shape, ("sample", "view", "row", "column")[-len(matrix_shape) :]),
    ):
        create(name, dtype=dtype, shape=shape, chunks=shape, compressors=Crc32cCodec(), dimension_names=dims)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(group.store)
    return json.loads(documents[ROOT].to_bytes())


def _names(tokens: Sequence[str]) -> np.ndarray:
    return np.array([token.encode() for token in tokens])
