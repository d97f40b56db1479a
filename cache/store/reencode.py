"""Encode the features of a store again, with other codecs and without the teacher."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from cache.config import Strict, override
from cache.errors import ConfigError
from cache.spec import CacheSpec, CodecSpec, LayerSpec, Lineage
from cache.store.codec import encode
from cache.store.derive import decoded, encoded_arrays, lineage_source, stored_arrays, write_derived
from cache.store.distortion import Distortion, measure
from cache.store.documents import read_record
from cache.store.layout import StoredSample, scale_array
from cache.store.reader import TeacherCache


@dataclass(frozen=True, kw_only=True)
class ReencodeReport:
    """Result of an encoding."""

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
    """The codecs of a store's layers, and the compression of its chunks: what `reencode` can change."""

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


def reencode(
    source: str | Path,
    out: str | Path,
    overrides: Iterable[str],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> ReencodeReport:
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
    return ReencodeReport(
        path=Path(out),
        samples=len(derived),
        written=written,
        bytes=sum(derived.bytes_per_sample().values()),
        source_bytes=sum(cache.bytes_per_sample().values()),
        sqnr_db={name: report[name].sqnr_db for name in changed_layers(cache.spec, spec)},
        seconds=time.monotonic() - began,
    )


def _with_budgets(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    layers = values["layers"] if isinstance(values["layers"], dict) else {}
    for name, codec in layers.items():
        target = codec.get("target_sqnr_db") if isinstance(codec, dict) else None
        own = any(each.startswith(f"layers.{name}.min_sqnr_db=") for each in overrides)
        if isinstance(target, int | float) and not own:
            codec["min_sqnr_db"] = min(codec.get("min_sqnr_db", target), target - 3)
    return values


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
