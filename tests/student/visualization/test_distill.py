import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cache.geometry.grid import BevGrid
from student.distill.cell_weights import weigh_cells
from student.distill.regions import region_decomposition
from student.distill.terms.fgd import FgdTerm
from student.visualization.distill import REGION_COLOURS, box_outlines, plot_cells, plot_regions

GRID = BevGrid(x_range_m=(0.0, 8.0), y_range_m=(-2.0, 2.0), cell_m=(1.0, 1.0))
BOXES = torch.tensor([[3.0, 0.0, 0, 4.0, 2.0, 1, 0.0, 0, 0]])


def test_outlines_by_hand() -> None:
    turned = torch.tensor([[1.0, 2.0, 0, 4.0, 2.0, 1, torch.pi / 2]])
    expected = [[0.0, 4.0], [0.0, 0.0], [2.0, 0.0], [2.0, 4.0], [0.0, 4.0]]
    np.testing.assert_allclose(box_outlines(turned)[0].numpy(), expected, atol=1e-6)


def test_regions_lie_where_they_are_in_metres() -> None:
    predicted, truth = torch.zeros(2, 4, 8), torch.zeros(2, 4, 8)
    predicted[1, 0, 7] = 1.0
    figure = plot_regions(region_decomposition(predicted, truth), GRID, BOXES, sample=1)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    (image,) = axes.images
    assert image.get_extent() == [0.0, 8.0, -2.0, 2.0]
    assert image.origin == "lower"
    assert list(REGION_COLOURS)[int(image.get_array()[0, 7])] == "false_positive"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "false positive: 1 cells" in labels
    assert axes.get_xlabel() == "x in m (lidar frame)"


@pytest.mark.parametrize("everything", [False, True])
def test_cells_show_every_region_there_is(everything: bool) -> None:
    none = torch.zeros(1, 4, 8, dtype=torch.bool)
    more = {"false_positives": none, "occupied": ~none} if everything else {}
    cells = weigh_cells(FgdTerm(kind="fgd"), BOXES[None].double(), GRID, **more)
    figure = plot_cells(cells, torch.ones(1, 4, 8), GRID, BOXES)
    FigureCanvasAgg(figure).draw()
    titles = {axes.get_title() for axes in figure.axes} - {""}
    expected = {"foreground", "background", "spatial attention"}
    assert titles == (expected | {"false positives", "non-empty cells"} if everything else expected)


def test_the_documentations_pictures_can_be_drawn(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "draw_objective.py"))
    script["draw"](script["made_up"](), tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["masks.png", "regions.png"]
