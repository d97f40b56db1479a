"""What lies beside the shards: Zarr metadata, small arrays, the head's weights. Bytes only; no file is touched."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from cache.geometry.views import view_matrices
from cache.spec import CacheSpec
from cache.store.format import sign, with_checksum
from cache.store.layout import (
    HEAD_WEIGHTS,
    ROOT,
    Layout,
    SampleArray,
    StoreAttributes,
    sample_arrays,
    view_matrix_shape,
    whole_key,
)


def small_files(
    attributes: StoreAttributes, tokens: Sequence[str], head_weights: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """All files but the shards and the manifest; the root comes last: a store without one has yet to be created."""
    names = np.array([token.encode() for token in tokens])
    whole = {
        "token": names.view(np.uint8).reshape(len(names), -1),
        "token_order": np.argsort(names, kind="stable").astype("<i8"),
        "view_matrix": view_matrix(attributes.spec, tokens),
    }
    files = {whole_key(name, values.ndim): with_checksum(values.tobytes()) for name, values in whole.items()}
    return {HEAD_WEIGHTS: weights_file(head_weights), **files, **_documents(attributes, names.dtype.itemsize)}


def view_matrix(spec: CacheSpec, tokens: Sequence[str]) -> np.ndarray:
    """The array `view_matrix`: (V, 4, 4), or (N, V, 4, 4) where some views are drawn for each sample."""
    different = tokens if spec.drawn else tokens[:1]
    matrices = [view_matrices(spec.views, spec.drawn, token) for token in different]
    return np.stack(matrices).astype("<f4").reshape(view_matrix_shape(spec))


def weights_file(tensors: Mapping[str, Tensor]) -> bytes:
    """The head's weights as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})


def _documents(attributes: StoreAttributes, token_bytes: int) -> dict[str, bytes]:
    """The Zarr metadata files of a store, by path; the root comes last."""
    nodes = {"features": {"zarr_format": 3, "node_type": "group", "attributes": {}}}
    samples = attributes.spec.data.samples
    for array in sample_arrays(attributes.spec).values():
        nodes[array.name] = _sharded(array, samples, attributes.layout)
    nodes["token"] = _whole("uint8", (samples, token_bytes), ("sample", "token_byte"))
    nodes["token_order"] = _whole("int64", (samples,), ("sample",))
    shape = view_matrix_shape(attributes.spec)
    nodes["view_matrix"] = _whole("float32", shape, ("sample", "view", "row", "column")[-len(shape) :])
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes.model_dump(mode="json"),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": nodes},
    }
    files = {f"{name}/{ROOT}": json.dumps(node, indent=2).encode() for name, node in nodes.items()}
    return {**files, ROOT: sign(root)}


def _sharded(array: SampleArray, samples: int, layout: Layout) -> dict[str, Any]:
    """Zarr v3 metadata of a per-sample array (zarr-specs, codecs/sharding-indexed)."""
    crc32c: dict[str, Any] = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1] * (len(array.dims) - len(array.shape)) + list(array.shape),
        "codecs": [
            _bytes(array.dtype),
            {"name": "zstd", "configuration": {"level": layout.zstd_level, "checksum": False}},
            crc32c,
        ],
        "index_codecs": [_bytes("uint64"), crc32c],
        "index_location": "end",
    }
    return _array(
        array.dtype,
        (samples, *array.sample_shape),
        (layout.samples_per_shard, *array.sample_shape),
        [{"name": "sharding_indexed", "configuration": sharding}],
        array.dims,
    )


def _whole(dtype: str, shape: tuple[int, ...], dims: tuple[str, ...]) -> dict[str, Any]:
    """Zarr v3 metadata of an array in one chunk."""
    return _array(dtype, shape, shape, [_bytes(dtype), {"name": "crc32c"}], dims)


def _array(
    dtype: str, shape: tuple[int, ...], chunk: tuple[int, ...], codecs: list[dict[str, Any]], dims: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def _bytes(dtype: str) -> dict[str, Any]:
    """Zarr's codec from numbers to bytes; the order of bytes means nothing where there is one."""
    wide = np.dtype(dtype).itemsize > 1
    return {"name": "bytes", "configuration": {"endian": "little"}} if wide else {"name": "bytes"}
