import numpy as np
import pytest
from rich.console import Console

from cache.reader import TeacherCache
from cache.report import statistics, statistics_table


def text_of(tables) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_statistics_by_an_independent_way(kit, cache):
    found = statistics(cache, samples=100)["head"]
    samples = [kit.make_sample(cache.spec, position).arrays for position in range(10)]
    values = np.stack([s["features/head"] * s["features/head_scale"][..., None, None] for s in samples])
    assert found.mean == pytest.approx(values.mean(), rel=1e-5)
    assert found.std == pytest.approx(values.std(ddof=1), rel=1e-5)
    assert found.largest == pytest.approx(values.max(), rel=1e-5)
    assert found.zeros == pytest.approx((values == 0).mean(), rel=1e-5)
    assert f"{found.zeros:.1%}" in text_of([statistics_table({"head": found})])
