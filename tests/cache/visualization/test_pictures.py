import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cache.store.reader import TeacherCache
from cache.visualization.pictures import draw_maps, energy, picture_uri, thumbnails
from tests.factories.stores import make_sample, make_tokens


def picture(uri: str) -> Image.Image:
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_energy_by_hand() -> None:
    features = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]])
    np.testing.assert_allclose(energy(features), [[2.0, 1.0]])


def test_row_0_is_at_the_bottom_and_colours_run_from_0_to_the_largest() -> None:
    values = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    pixels = np.asarray(picture(picture_uri(values, cells=2)))
    np.testing.assert_array_equal(pixels, [[32, 63], [0, 16]])
    fixed = np.asarray(picture(picture_uri(values, cells=3, largest=8.0)))
    np.testing.assert_array_equal(fixed, [[16, 32], [0, 8]])


def test_large_maps_are_averaged() -> None:
    values = torch.zeros(8, 4)
    values[:2, :2] = 4.0
    small = picture(picture_uri(values, cells=4))
    assert small.size == (2, 4)
    assert np.asarray(small)[3, 0] == 63


def test_small_maps_are_enlarged_cell_by_cell() -> None:
    large = np.asarray(picture(picture_uri(torch.tensor([[0.0, 1.0]]), cells=7)))
    np.testing.assert_array_equal(large, [[0, 0, 0, 63, 63, 63]] * 3)


def test_an_empty_map_is_dark() -> None:
    assert not np.asarray(picture(picture_uri(torch.zeros(3, 3)))).any()


def test_names_of_thumbnails_are_escaped() -> None:
    shown = thumbnails({"<script>": torch.ones(2, 2)})
    assert "<script" not in shown
    assert shown.count("<img") == 1


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_a_figure_shows_every_map_of_a_sample(cache) -> None:
    figure = cache[make_tokens(10)[0]].plot()
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title() for axes in figure.axes] == [
        "head: 6 x 6 x 8",
        "backbone0: 4 x 12 x 16",
        "backbone1: 3 x 6 x 8",
        "heatmap, max over classes",
        "canvas mask",
    ]
    assert make_tokens(10)[0] in figure.get_suptitle()
    shown = figure.axes[0].images[0]
    assert shown.origin == "lower"
    sample = make_sample(cache.spec, 0).arrays
    head = sample["features/head"][0] * sample["features/head_scale"][0, :, None, None]
    np.testing.assert_allclose(shown.get_array(), np.abs(head).mean(axis=0), rtol=1e-5)


def test_maps_can_be_drawn_in_gray() -> None:
    figure = draw_maps({"a": torch.ones(2, 2)}, "title", palette="gray")
    assert figure.axes[0].images[0].get_cmap().name == "gray"


def test_many_maps_are_drawn_in_rows() -> None:
    figure = draw_maps({str(number): torch.ones(2, 2) for number in range(7)}, "title", columns=3)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 3)
