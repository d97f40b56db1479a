"""A store in tables: identity, layers with their error report, sizes; from its documents alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.store.layout import LayerReport, StoreAttributes
from cache.store.shard_reader import ShardReader
from cache.visualization.tables import Table


def identity(path: Path, attributes: StoreAttributes, committed: int) -> Table:
    """What is cached of which teacher, and how far the dump came."""
    state = "complete" if attributes.sealed else f"not complete: {committed} samples are committed so far"
    software = ", ".join(f"{name} {version}" for name, version in attributes.software.items())
    return Table(title=str(path), rows=(*attributes.spec.facts, ("state", state), ("software", software)))


def layers(attributes: StoreAttributes) -> Table:
    """Each layer's shape, grid and codec, and what the codec lost of it (known once the store is sealed)."""
    columns = ("layer", "shape", "grid", "codec", "SQNR", "largest error", "saturated")
    rows = tuple((*layer.facts, *_error(attributes.codec_report.get(layer.name))) for layer in attributes.spec.layers)
    return Table(title="layers", columns=columns, rows=rows)


def sizes(attributes: StoreAttributes, reader: ShardReader, shards: Sequence[int]) -> Table:
    """Bytes a sample of each array, as the manifest counts them in some shards, beside float32."""
    samples = _samples_in(attributes, shards)
    stored = stored_bytes(attributes, reader, shards)
    float32 = {
        name: 4.0 * int(np.prod(array.sample_shape)) * (8 if name == "canvas_mask" else 1)
        for name, array in reader.arrays.items()
    }
    rows = [(name, stored[name], float32[name]) for name in stored]
    rows.append(("together", sum(stored.values()), sum(float32.values())))
    total_gb = sum(stored.values()) * samples / 1e9
    return Table(
        title=f"bytes a sample ({samples:,} samples, {total_gb:.3f} GB)",
        columns=("array", "stored", "as float32", "smaller by"),
        rows=tuple((name, f"{s:,.0f}", f"{f:,.0f}", f"{f / s:.1f} x" if s else "") for name, s, f in rows),
    )


def stored_bytes(attributes: StoreAttributes, reader: ShardReader, shards: Sequence[int]) -> dict[str, float]:
    """Bytes a sample of each array, as the manifest counts them in some shards."""
    samples = max(1, _samples_in(attributes, shards))
    return {
        name: sum(reader.file(array, shard).bytes for shard in shards) / samples
        for name, array in reader.arrays.items()
    }


def _samples_in(attributes: StoreAttributes, shards: Sequence[int]) -> int:
    size = attributes.layout.samples_per_shard
    return sum(min(size, attributes.spec.data.samples - shard * size) for shard in shards)


def _error(report: LayerReport | None) -> tuple[str, str, str]:
    if report is None:
        return "", "", ""
    ratio = "exact" if report.sqnr_db is None else f"{report.sqnr_db:.1f} dB"
    return ratio, f"{report.largest_error:.3g}", f"{report.saturated_fraction:.1%}"
