"""What a person sees of a store."""

from dataclasses import dataclass
from pathlib import Path

from cache.spec import CacheSpec
from cache.store.layout import LayerReport
from cache.store.reader import TeacherCache
from cache.store.shard_reader import ShardReader
from cache.visualization.facts import stored_bytes
from cache.visualization.statistics import LayerStatistics, survey
from cache.visualization.tables import Table


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What the tables of a store say, for a machine."""

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
    """Identity, layers, sizes, error report and statistics."""
    shards = ShardReader(cache.path, cache.attributes)
    return StoreSummary(
        path=cache.path,
        fingerprint=cache.spec.fingerprint,
        sealed=cache.attributes.sealed,
        samples=len(cache),
        spec=cache.spec,
        software=cache.attributes.software,
        codec_report=cache.attributes.codec_report,
        bytes_per_sample=stored_bytes(cache.attributes, shards, cache.committed_shards()),
        statistics=survey(cache).statistics,
    )


def statistics_table(found: dict[str, LayerStatistics]) -> Table:
    """The statistics as a table."""
    rows = [(name, *(f"{x:.4g}" for x in (s.mean, s.std, s.largest)), f"{s.zeros:.1%}") for name, s in found.items()]
    return Table(title="values", columns=("layer", "mean", "standard deviation", "largest", "zeros"), rows=tuple(rows))
