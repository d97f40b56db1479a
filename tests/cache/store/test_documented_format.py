"""The reader in docs/store.md agrees with TeacherCache."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.geometry.views import DrawnViews
from cache.store.reader import TeacherCache
from tests.factories.stores import make_store

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "store-v1"


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "store.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/store.md", "exec"), names)
    return names


@pytest.mark.parametrize("layer", ["head", "backbone0", "backbone1", "backbone2"])
def test_the_reader_in_the_documentation(documented, layer):
    cache = TeacherCache(GOLDEN)
    for token in cache.tokens:
        expected = cache[token].features[layer].decode()[0].numpy()
        np.testing.assert_allclose(documented["read"](GOLDEN, layer, token), expected, rtol=1e-5)
        np.testing.assert_array_equal(documented["view_matrices"](GOLDEN, token), np.eye(4)[None])


@pytest.mark.parametrize("drawn", [None, DrawnViews(seed=3)])
def test_it_reads_every_view(documented, tmp_path, drawn):
    views = ("canonical", "flip_y", *(["drawn0"] if drawn else []))
    store = make_store(tmp_path / "teacher.zarr", views=views, drawn=drawn)
    cache = TeacherCache(store)
    for token in cache.tokens:
        np.testing.assert_array_equal(documented["view_matrices"](store, token), cache.view_matrices([token])[0])
        for view in range(len(views)):
            expected = cache[token].features["backbone0"].decode()[view].numpy()
            np.testing.assert_allclose(documented["read"](store, "backbone0", token, view), expected, rtol=1e-5)
