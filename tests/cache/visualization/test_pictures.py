import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cache.store.reader import TeacherCache
from cache.visualization.pictures import energy, figure_uri, histogram, picture_path, picture_uri, plot, plot_maps
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


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_a_figure_shows_every_map_of_a_sample(cache) -> None:
    figure = plot(cache[make_tokens(10)[0]])
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
    figure = plot_maps({"a": torch.ones(2, 2)}, "title", palette="gray")
    assert figure.axes[0].images[0].get_cmap().name == "gray"


def test_many_maps_are_drawn_in_rows() -> None:
    figure = plot_maps({str(number): torch.ones(2, 2) for number in range(7)}, "title", columns=3)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 3)


def bar_heights(figure: Figure) -> np.ndarray:
    """Heights of a histogram's bars in pixels."""
    (axes,) = figure.axes
    FigureCanvasAgg(figure).draw()
    counts = axes.patches[0].get_data().values
    pixels = axes.transData.transform(np.column_stack([np.zeros(len(counts)), counts]))
    return pixels[:, 1] - axes.transData.transform((0, 0))[1]


def test_heights_of_a_histogram_are_logarithms_of_counts() -> None:
    figure = histogram(np.array([0, 1, 99]), np.array([-1.0, 0.0, 1.0, 2.0]))
    heights = bar_heights(figure)
    np.testing.assert_allclose(heights / heights[2], [0, np.log(2) / np.log(100), 1], atol=1e-6)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["99"]
    assert figure.axes[0].get_xlim() == (-1, 2)


def test_a_histogram_without_a_count_is_empty() -> None:
    assert not bar_heights(histogram(np.zeros(4, int), np.arange(5.0))).any()


def test_figures_become_the_same_bytes_each_time() -> None:
    first, second = (figure_uri(histogram(np.array([3, 5]), np.arange(3.0))) for _ in range(2))
    assert first == second
    assert picture(first).width > 400


def test_a_token_never_leads_out_of_the_folder():
    assert picture_path("e93e98b63d3b40209056d129dc53ceee") == Path("e93e98b63d3b40209056d129dc53ceee.png")
    assert picture_path("../../x") == Path("______x.png")
    assert picture_path("/etc/passwd\x1b") == Path("_etc_passwd_.png")
