from rich.console import Console

from cache.store.reader import TeacherCache
from cache.visualization.summary import statistics_table, summarise
from tests.factories.stores import open_writer


def test_a_summary_has_the_facts_of_the_tables(sealed_store) -> None:
    cache = TeacherCache(sealed_store)
    summary = summarise(cache)
    assert (summary.samples, summary.fingerprint, summary.sealed) == (10, cache.spec.fingerprint, True)
    stored = sum(file.stat().st_size for file in (sealed_store / "heatmap").glob("c.*")) / 10
    assert summary.bytes_per_sample["heatmap"] == stored
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(statistics_table(summary.statistics))
    assert f"{summary.statistics['head'].zeros:.1%}" in console.export_text()


def test_a_store_without_a_sample_has_a_summary(tmp_path) -> None:
    open_writer(tmp_path / "teacher.zarr").close()
    summary = summarise(TeacherCache(tmp_path / "teacher.zarr", allow_partial=True))
    assert (summary.samples, summary.sealed, summary.statistics) == (0, False, {})
