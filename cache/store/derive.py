"""Stores derived from others, without the teacher."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cache.config import Strict, override
from cache.errors import ConfigError
from cache.spec import CacheSpec, CodecSpec, LayerSpec, Lineage, LineageSource
from cache.store.atomic import write_durably
from cache.store.codec import Encoded, encode
from cache.store.copy import frame_files
from cache.store.distortion import Distortion, measure
from cache.store.documents import read_record
from cache.store.layout import Layout, StoredSample, feature_array, scale_array
from cache.store.metadata import view_matrix
from cache.store.places import LocalSource
from cache.store.preconditions import require_same_matrices
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter

BATCH = 8
"""Samples that are compressed at a time."""


@dataclass(frozen=True, kw_only=True)
class DeriveReport:
    """Result of a derivation."""

    path: Path
    samples: int
    written: int
    """Shards of this run; the others were there already."""
    bytes: float
    """Of a sample."""
    source_bytes: float
    """Of a sample of the source."""
    sqnr_db: dict[str, float | None]
    """Of each layer that was encoded again: the source's decoded values against the new ones."""
    seconds: float

    def __str__(self) -> str:
        lost = ", ".join(
            f"{name} {'exact' if left is None else f'{left:.1f} dB'}" for name, left in self.sqnr_db.items()
        )
        size = f"{self.bytes / 1e6:.3f} MB a sample, {self.source_bytes / 1e6:.3f} MB in the source"
        return f"{self.path}: {self.samples} samples, {size}; {lost}"


class Codecs(Strict):
    """The codecs of a store's layers, and the compression of its chunks: what `derive` can change."""

    layers: dict[str, CodecSpec]
    zstd_level: int = Field(ge=1, le=19)

    @classmethod
    def of(cls, source: TeacherCache, overrides: Iterable[str]) -> "Codecs":
        """Those of a store, changed by overrides, "layers.head.target_sqnr_db=26".

        A budget (min_sqnr_db) that is not set itself is lowered to 3 dB below the layer's target.

        Raises:
            ConfigError: there is no such setting or layer, or a target is above what the source itself has.
        """
        known = {layer.name: layer.codec.model_dump(mode="json") for layer in source.spec.layers}
        level = source.attributes.layout.zstd_level
        values = override({"layers": known, "zstd_level": level}, chosen := list(overrides))
        codecs = cls.parse(_with_budgets(values, chosen), where="--set")
        if codecs.layers.keys() != {layer.name for layer in source.spec.layers}:
            raise ConfigError(
                "a store cannot be derived with other layers",
                where="layers",
                got=", ".join(codecs.layers),
                expected=", ".join(layer.name for layer in source.spec.layers),
                cure="Choose layers with `cli copy --layers`",
            )
        return codecs


def _with_budgets(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    layers = values["layers"] if isinstance(values["layers"], dict) else {}
    for name, codec in layers.items():
        target = codec.get("target_sqnr_db") if isinstance(codec, dict) else None
        own = any(each.startswith(f"layers.{name}.min_sqnr_db=") for each in overrides)
        if isinstance(target, int | float) and not own:
            codec["min_sqnr_db"] = min(codec.get("min_sqnr_db", target), target - 3)
    return values


def derive(
    source: str | Path,
    out: str | Path,
    overrides: Iterable[str],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> DeriveReport:
    """Write a store of the same samples with other codecs.

    The features are decoded and encoded again; all else is taken over as it is. What a new codec loses is measured
    against the source's decoded values; what the source had lost itself stands in the spec's lineage.

    Args:
        out: the store to create, or to resume.
        overrides: of `Codecs`, "layers.head.target_sqnr_db=26".
        progress: called with (done, total) shards.

    Raises:
        ConfigError: see `Codecs.of`; or a codec loses more than its budget.
        UnsealedError: the source is not complete.
        CorruptStoreError: it is damaged.
        MismatchError: another store is at `out`.
        StoreError: see `StoreWriter`.
    """
    began, cache = time.monotonic(), TeacherCache(source)
    codecs = Codecs.of(cache, overrides)
    spec = encoded_spec(cache, codecs.layers)
    layout = cache.attributes.layout.model_copy(update={"zstd_level": codecs.zstd_level})
    if not changed_layers(cache.spec, spec) and layout == cache.attributes.layout:
        cure = "Change a codec with --set, or copy the store with `cli copy`"
        raise ConfigError("there is nothing to derive: all codecs are the source's", where="--set", cure=cure)
    written = write_derived(cache, spec, layout, Path(out), partial(encoded_samples, cache, spec), progress)
    derived = TeacherCache(out)
    report = derived.attributes.codec_report
    return DeriveReport(
        path=Path(out),
        samples=len(derived),
        written=written,
        bytes=sum(derived.bytes_per_sample().values()),
        source_bytes=sum(cache.bytes_per_sample().values()),
        sqnr_db={name: report[name].sqnr_db for name in changed_layers(cache.spec, spec)},
        seconds=time.monotonic() - began,
    )


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
    tokens = first.all_tokens[:]
    require_same_matrices(first.path, first.attributes, view_matrix(spec, tokens))
    with StoreWriter(
        out,
        spec,
        tokens,
        head_weights=first.head_weights(),
        software=first.attributes.software,
        layout=layout,
        teacher_file=first.attributes.teacher_file,
    ) as writer:
        for key, data in frame_files(LocalSource(first.path), str(first.path)):
            (out / key).parent.mkdir(exist_ok=True)
            write_durably(out / key, data)
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


def encoded_spec(cache: TeacherCache, codecs: Mapping[str, CodecSpec]) -> CacheSpec:
    """The spec of a store with other codecs.

    Raises:
        ConfigError: a target is above what the source itself has.
    """
    layers = tuple(layer.model_copy(update={"codec": codecs[layer.name]}) for layer in cache.spec.layers)
    spec = cache.spec.model_copy(
        update={"layers": layers, "lineage": Lineage(operation="encode", sources=(lineage_source(cache),))}
    )
    for name, layer in changed_layers(cache.spec, spec).items():
        target, left = layer.codec.target_sqnr_db, cache.attributes.codec_report[name].sqnr_db
        if target is not None and left is not None and target > left:
            raise ConfigError(
                "a layer cannot be encoded more exactly than it is stored",
                where=f"layers.{name}.target_sqnr_db",
                got=f"{target:g} dB",
                expected=f"at most {left:.1f} dB, which the source has",
                cure="Lower the target, or dump the teacher again",
            )
    return spec


def changed_layers(before: CacheSpec, after: CacheSpec) -> dict[str, LayerSpec]:
    """The layers whose codecs differ, as they are afterwards."""
    return {new.name: new for old, new in zip(before.layers, after.layers, strict=True) if old.codec != new.codec}


def encoded_samples(cache: TeacherCache, spec: CacheSpec, shard: int) -> Iterator[StoredSample]:
    """The samples of a shard with the features of some layers encoded again.

    What the codecs of the other layers lost of the shard is counted with its first sample.
    """
    changed = changed_layers(cache.spec, spec)
    recorded = read_record(cache.path, shard, cache.attributes).distortion
    kept = {name: lost for name, lost in recorded.items() if name not in changed}
    for row in range(len(cache.tokens_of(shard))):
        arrays = stored_arrays(cache, shard, row)
        distortion = kept if row == 0 else {name: Distortion() for name in kept}
        for name, layer in changed.items():
            old = cache.spec.layer(name).codec
            values = decoded(arrays, name, old)
            again = encode(values, layer.codec, layer=name, tokens=(cache.tokens_of(shard)[row],) * len(values))
            arrays.pop(scale_array(name), None)
            arrays |= encoded_arrays(name, again)
            distortion = distortion | {name: sum(measure(values, again), start=Distortion())}
        yield StoredSample(arrays=arrays, distortion=distortion)


def stored_arrays(cache: TeacherCache, shard: int, row: int) -> dict[str, np.ndarray]:
    """All arrays of a sample as they are stored, each of its `sample_shape`."""
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
    """The arrays that store a layer's features."""
    arrays = {feature_array(layer): features.values.numpy()}
    return arrays if features.codec.kind == "float16" else arrays | {scale_array(layer): features.scale.numpy()}
