"""`%load_ext cache.visualization`: objects are HTML in a notebook, and loading it costs nothing."""

import subprocess
import sys

import pytest

from cache.store.reader import TeacherCache
from cache.visualization import Table, load_ipython_extension, plot, to_html


def test_objects_are_html_in_a_notebook(sealed_store) -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    load_ipython_extension(shell)
    cache = TeacherCache(sealed_store)
    sample = cache[cache.tokens[0]]
    table = Table(title="<facts>", rows=(("a", "b"),))
    for shown in (cache, sample, cache.read(cache.tokens[:2]), cache.spec, table):
        data, _ = shell.display_formatter.format(shown)
        assert data["text/html"] == to_html(shown)
    assert "text/html" not in shell.display_formatter.format(5)[0]
    assert len(plot(sample).axes) == 5


def test_objects_without_html_are_refused() -> None:
    with pytest.raises(TypeError, match="no HTML for objects of type int"):
        to_html(5)
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        from cache import visualization

        visualization.draw  # noqa: B018


def test_the_extension_is_light() -> None:
    code = "import sys, cache.visualization; print(*{'torch', 'matplotlib', 'jinja2', 'zarr'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"
