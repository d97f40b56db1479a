import numpy as np
import pytest

from cache.store.reader import TeacherCache
from cache.visualization.statistics import spread, survey
from tests.factories.stores import make_sample


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_statistics_computed_independently(cache) -> None:
    found = survey(cache, samples=100)
    head = found.statistics["head"]
    samples = [make_sample(cache.spec, position).arrays for position in range(10)]
    values = np.stack([s["features/head"] * s["features/head_scale"][..., None, None] for s in samples])
    assert head.mean == pytest.approx(values.mean(), rel=1e-5)
    assert head.std == pytest.approx(values.std(ddof=1), rel=1e-5)
    assert head.largest == pytest.approx(values.max(), rel=1e-5)
    assert head.zeros == pytest.approx((values == 0).mean(), rel=1e-5)
    kept = np.concatenate(found.layers["head"].kept)
    np.testing.assert_allclose(np.sort(kept), np.sort(values.ravel()), rtol=1e-6)


def test_codes_are_counted_from_the_least_on(cache) -> None:
    found = survey(cache, samples=100).layers
    samples = [make_sample(cache.spec, position).arrays for position in range(10)]
    for name, first in (("head", 0), ("backbone0", -128)):
        codes = np.stack([s[f"features/{name}"] for s in samples])
        assert found[name].codes.tolist() == [(codes == code).sum() for code in range(first, first + 256)]
    assert not found["backbone1"].codes.any()


def test_the_worst_samples_come_first(cache) -> None:
    found = survey(cache, samples=100)
    lowest = [sample.lowest_db for sample in found.worst(10)]
    assert lowest == sorted(lowest)
    assert lowest[0] == min(min(sample.sqnr_db.values()) for sample in found.samples)
    assert len(found.worst(3)) == 3


def test_samples_are_spread_evenly() -> None:
    assert spread("0123456789", 4) == ("0", "3", "6", "9")
    assert spread("abc", 9) == ("a", "b", "c")
    assert spread((), 3) == ()
