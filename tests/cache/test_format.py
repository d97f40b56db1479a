"""docs/store.md says enough to read a store: its own reader does, and agrees with ours."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.reader import TeacherCache

ROOT = Path(__file__).parents[2]
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
