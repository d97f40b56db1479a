"""Tables of a store, a sample and a dump's plan, and the same facts of a store as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.dumping.estimate import Plan
from cache.spec import LAYER_COLUMNS, CacheSpec
from cache.store.batch import TeacherBatch, TeacherSample, describe_arrays
from cache.store.documents import LayerReport
from cache.store.reader import TeacherCache
from cache.visualization.statistics import LayerStatistics, survey
from cache.visualization.tables import Table


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """A store's identity, error report, sizes and statistics."""

    path: Path
    fingerprint: str
    sealed: bool
    samples: int
    """Committed."""
    spec: CacheSpec
    software: dict[str, str]
    codec_report: dict[str, LayerReport]
    bytes_per_sample: dict[str, float]
    """By array."""
    statistics: dict[str, LayerStatistics]


def summarise(cache: TeacherCache) -> StoreSummary:
    """Read what the summary holds; statistics are those of a few samples."""
    return StoreSummary(
        path=cache.path,
        fingerprint=cache.spec.fingerprint,
        sealed=cache.attributes.sealed,
        samples=len(cache),
        spec=cache.spec,
        software=cache.attributes.software,
        codec_report=cache.attributes.codec_report,
        bytes_per_sample=cache.bytes_per_sample(),
        statistics=survey(cache).statistics,
    )


def store_tables(cache: TeacherCache, shards: Sequence[int] | None = None) -> tuple[Table, Table, Table]:
    """A store in tables: identity, layers with their error report, sizes.

    Args:
        shards: whose files' sizes are counted; those of all committed ones by default.
    """
    attributes = cache.attributes
    state = "complete" if attributes.sealed else f"not complete: {len(cache)} samples are committed so far"
    software = ", ".join(f"{name} {version}" for name, version in attributes.software.items())
    identity = (*cache.spec.facts, ("state", state), ("software", software))
    return (
        Table(title=str(cache.path), rows=identity),
        layer_table(cache.spec, attributes.codec_report),
        _size_table(cache, cache.committed_shards() if shards is None else shards),
    )


def spec_table(spec: CacheSpec) -> Table:
    """What is cached of which teacher."""
    return Table(title="identity", rows=spec.facts)


def layer_table(spec: CacheSpec, report: Mapping[str, LayerReport] | None = None) -> Table:
    """Each layer's shape, grid and codec, and with a report (complete once the store is sealed) the codec's error."""
    if report is None:
        return Table(title="layers", columns=LAYER_COLUMNS, rows=tuple(layer.facts for layer in spec.layers))
    rows = tuple((*layer.facts, *_error(report.get(layer.name))) for layer in spec.layers)
    return Table(title="layers", columns=(*LAYER_COLUMNS, "SQNR", "largest error", "saturated"), rows=rows)


def array_table(held: TeacherSample | TeacherBatch) -> Table:
    """Type and shape of each array."""
    return Table(title="arrays", rows=tuple(describe_arrays(held).items()))


def statistics_table(found: Mapping[str, LayerStatistics]) -> Table:
    """Statistics of each layer's values."""
    rows = [(name, *(f"{x:.4g}" for x in (s.mean, s.std, s.largest)), f"{s.zeros:.1%}") for name, s in found.items()]
    return Table(title="values", columns=("layer", "mean", "standard deviation", "largest", "zeros"), rows=tuple(rows))


def plan_tables(plan: Plan) -> tuple[Table, Table]:
    """A dump's plan: its arrays, and what each view adds."""
    hours = plan.seconds_per_sample * plan.samples / 3600
    title = (
        f"{plan.path}: {plan.samples} samples, {plan.total_bytes / 1e9:,.2f} GB in {plan.files:,} files "
        f"({plan.free_bytes / 1e9:,.1f} GB free), at most {hours:.1f} hours"
    )
    arrays = []
    for array in plan.arrays:
        ratio = "" if array.sqnr_db is None else f"{array.sqnr_db:.1f} dB"
        total = f"{array.bytes * plan.samples / 1e9:,.3f}"
        arrays.append((array.name, *_sizes(array.bytes, array.float32_bytes), ratio, total))
    views = []
    for view in plan.views:
        totals = f"{view.bytes * plan.samples / 1e9:,.2f}", f"{view.seconds * plan.samples / 3600:,.2f}"
        views.append((view.name, f"{view.bytes:,.0f}", f"{view.seconds:.2f}", *totals))
    of_arrays = ("array", "bytes a sample", "as float32", "smaller by", "SQNR", "GB together")
    of_views = ("view", "bytes a sample", "seconds a sample", "GB together", "hours together")
    return (
        Table(title=title, columns=of_arrays, rows=tuple(arrays)),
        Table(title="views", columns=of_views, rows=tuple(views)),
    )


def _size_table(cache: TeacherCache, shards: Sequence[int]) -> Table:
    samples = sum(len(cache.tokens_of(shard)) for shard in shards)
    stored = cache.bytes_per_sample(shards)
    rows = [(name, size, cache.shards.arrays[name].float32_bytes) for name, size in stored.items()]
    rows.append(("together", sum(stored.values()), sum(float32 for *_, float32 in rows)))
    return Table(
        title=f"bytes a sample ({samples:,} samples, {sum(stored.values()) * samples / 1e9:.3f} GB)",
        columns=("array", "stored", "as float32", "smaller by"),
        rows=tuple((name, *_sizes(size, float32)) for name, size, float32 in rows),
    )


def _sizes(stored: float, float32: float) -> tuple[str, str, str]:
    return f"{stored:,.0f}", f"{float32:,.0f}", f"{float32 / stored:.1f} x" if stored else ""


def _error(report: LayerReport | None) -> tuple[str, str, str]:
    if report is None:
        return "", "", ""
    ratio = "exact" if report.sqnr_db is None else f"{report.sqnr_db:.1f} dB"
    return ratio, f"{report.largest_error:.3g}", f"{report.saturated_fraction:.1%}"
