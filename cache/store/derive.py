"""What all derivations of stores share: samples as they are stored, lineage, and writing without a teacher."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cache.spec import CacheSpec, CodecSpec, LineageSource
from cache.store.codec import Encoded
from cache.store.copy import frame_files
from cache.store.layout import FRAMES, Layout, StoredSample, feature_array, scale_array
from cache.store.metadata import view_matrix
from cache.store.places import LocalSource
from cache.store.preconditions import require_same_matrices
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter

BATCH = 8
"""Samples that are compressed at a time."""


def write_derived(
    first: TeacherCache,
    spec: CacheSpec,
    layout: Layout,
    out: Path,
    samples_of: Callable[[int], Iterator[StoredSample]],
    progress: Callable[[int, int], None],
) -> int:
    """Write a store whose samples are made of others', shard by shard, and seal it; returns the shards written.

    Args:
        first: the store whose tokens, head's weights and frames are taken over.
        spec: of the new store.
        samples_of: makes the samples of a shard.
    """
    tokens, frames = first.all_tokens[:], frame_files(LocalSource(first.path), first.attributes, str(first.path))
    require_same_matrices(first.path, first.attributes, view_matrix(spec, tokens))
    with StoreWriter(
        out,
        spec,
        tokens,
        head_weights=first.head_weights(),
        software=first.attributes.software,
        layout=layout,
        teacher_file=first.attributes.teacher_file,
        frames={key.removeprefix(f"{FRAMES}/"): data for key, data in frames},
    ) as writer:
        missing = writer.missing_shards()
        for done, shard in enumerate(missing, start=1):
            opened = writer.shard(shard)
            samples = samples_of(shard)
            while batch := list(islice(samples, BATCH)):
                opened.add(batch)
            opened.commit()
            progress(done, len(missing))
        writer.seal()
    return len(missing)


def lineage_source(cache: TeacherCache) -> LineageSource:
    """A store as a source of another."""
    return LineageSource(
        fingerprint=cache.spec.fingerprint,
        codecs={layer.name: layer.codec for layer in cache.spec.layers},
        sqnr_db={name: lost.sqnr_db for name, lost in cache.attributes.codec_report.items()},
        lineage=cache.spec.lineage,
    )


def stored_arrays(cache: TeacherCache, shard: int, row: int) -> dict[str, np.ndarray]:
    """All arrays of a sample by name, as they are stored: V x the shape of a view, or one shape for all views."""
    arrays, chunks = {}, [chunk for chunk in cache.chunks_of(shard) if chunk.row == row]
    for name, array in cache.shards.arrays.items():
        out = np.empty((array.chunks, *array.shape), array.dtype)
        for chunk in chunks[: array.chunks]:
            cache.shards.read(name, chunk, out[chunk.view])
        arrays[name] = out.reshape(array.sample_shape)
    return arrays


def decoded(arrays: Mapping[str, np.ndarray], layer: str, codec: CodecSpec) -> torch.Tensor:
    """A layer's features, (V, C, H, W)."""
    values = torch.from_numpy(arrays[feature_array(layer)])
    scale = arrays.get(scale_array(layer))
    steps = torch.ones(values.shape[:2]) if scale is None else torch.from_numpy(scale)
    return Encoded(values=values, scale=steps, codec=codec).decode()


def encoded_arrays(layer: str, features: Encoded) -> dict[str, np.ndarray]:
    """The arrays that store a layer's features: codes (V, C, H, W) and, but for float16, scales (V, C)."""
    arrays = {feature_array(layer): features.values.numpy()}
    return arrays if features.codec.kind == "float16" else arrays | {scale_array(layer): features.scale.numpy()}
