import re

import pytest

from cache.store.reader import TeacherCache

pytest.importorskip("ipywidgets", reason="the extra `notebook` is not installed")

from cache.visualization.browser import CacheBrowser
from cache.visualization.pictures import energy, picture_uri
from tests.factories.stores import make_tokens


@pytest.fixture
def browser(sealed_store) -> CacheBrowser:
    return CacheBrowser(TeacherCache(sealed_store))


def shown(browser: CacheBrowser) -> str:
    (source,) = re.findall(r'src="([^"]*)"', browser.picture.value)
    return source


def test_it_begins_with_the_first_layers_energy(sealed_store, browser) -> None:
    first = TeacherCache(sealed_store)[make_tokens(10)[0]]
    assert shown(browser) == picture_uri(energy(first.features["head"].decode()[0]), cells=512)
    assert make_tokens(10)[0] in browser.picture.value


def test_tokens_maps_and_channels(sealed_store, browser) -> None:
    sample = TeacherCache(sealed_store)[make_tokens(10)[7]]
    browser.token.value = 7
    browser.channel.value = 4
    assert shown(browser) == picture_uri(sample.features["head"].decode()[0, 4], cells=512)
    browser.map.value = "backbone0"
    assert browser.channel.value == 3, "it has only four channels"
    assert shown(browser) == picture_uri(sample.features["backbone0"].decode()[0, 3].abs(), cells=512)
    browser.map.value = "heatmap"
    browser.channel.value = 1
    assert "heatmap, pedestrian" in browser.picture.value
    assert shown(browser) == picture_uri(sample.heatmap[0, 1].float() / 255, cells=512)
    browser.channel.value = -1
    assert shown(browser) == picture_uri(sample.heatmap[0].amax(dim=0).float() / 255, cells=512)
    browser.map.value = "canvas mask"
    assert shown(browser) == picture_uri(sample.canvas_mask[0].float(), cells=512)
    assert (browser.channel.min, browser.channel.max) == (-1, -1)


def test_it_is_a_widget_in_a_notebook(browser) -> None:
    data = browser._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in (data[0] if isinstance(data, tuple) else data)
