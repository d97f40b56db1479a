import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid


@pytest.fixture
def grid() -> BevGrid:
    """4 cells along y, 6 along x, of 2 m x 0.5 m (x, y)."""
    return BevGrid(x_range_m=(-6.0, 6.0), y_range_m=(-1.0, 1.0), cell_m=(2.0, 0.5))


def test_shape_is_rows_then_columns(grid):
    assert grid.shape == (4, 6)


def test_the_public_grids():
    student = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
    voxels = BevGrid(x_range_m=(-54.0, 54.0), y_range_m=(-54.0, 54.0), cell_m=(0.075, 0.075))
    assert student.shape == (128, 128)
    assert voxels.shape == (1440, 1440)
    assert voxels.coarser(8).shape == (180, 180)
    assert voxels.coarser(8).cell_m == pytest.approx((0.6, 0.6))


def test_cells_by_hand(grid):
    metres = np.array([[-6.0, -1.0], [-5.0, -0.75], [0.0, 0.0], [6.0, 1.0]])
    cells = np.array([[0.0, 0.0], [0.5, 0.5], [3.0, 2.0], [6.0, 4.0]])
    np.testing.assert_allclose(grid.to_cells(metres), cells)
    np.testing.assert_allclose(grid.to_metres(cells), metres)


def test_centres_by_hand(grid):
    centers = grid.centers_m()
    assert centers.shape == (4, 6, 2)
    np.testing.assert_allclose(centers[0, 0], (-5.0, -0.75))
    np.testing.assert_allclose(centers[3, 0], (-5.0, 0.75))  # row = y
    np.testing.assert_allclose(centers[0, 5], (5.0, -0.75))  # column = x


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 2.0), st.floats(-80, 80), st.floats(-80, 80))
def test_metres_and_cells_are_inverse(columns, rows, cell, x0, y0):
    grid = BevGrid(x_range_m=(x0, x0 + columns * cell), y_range_m=(y0, y0 + rows * cell), cell_m=(cell, cell))
    assert grid.shape == (rows, columns)
    points = np.random.default_rng(0).uniform(-100, 100, (5, 2))
    np.testing.assert_allclose(grid.to_metres(grid.to_cells(points)), points, atol=1e-9)
    row, column = np.mgrid[:rows, :columns]
    np.testing.assert_allclose(grid.to_cells(grid.centers_m()), np.stack([column, row], axis=-1) + 0.5, atol=1e-6)


def test_resized_keeps_the_range(grid):
    finer = grid.resized((8, 24))
    assert (finer.shape, finer.x_range_m, finer.cell_m) == ((8, 24), grid.x_range_m, (0.5, 0.25))


@pytest.mark.parametrize(
    ("x_range_m", "cell_m", "axis"),
    [((-6.0, 6.1), (2.0, 0.5), "x"), ((6.0, -6.0), (2.0, 0.5), "x"), ((-6.0, 6.0), (2.0, 0.3), "y")],
)
def test_a_range_that_is_no_whole_number_of_cells(x_range_m, cell_m, axis):
    with pytest.raises(ConfigError) as caught:
        BevGrid(x_range_m=x_range_m, y_range_m=(-1.0, 1.0), cell_m=cell_m)
    assert f"the BEV range along {axis} is not a whole number of cells" in str(caught.value)
    assert "Change the range or the cell size" in str(caught.value)


@pytest.mark.parametrize("cell", [0.0, -1.0])
def test_cells_of_no_size(cell):
    with pytest.raises(ConfigError):
        BevGrid(x_range_m=(-6.0, 6.0), y_range_m=(-1.0, 1.0), cell_m=(cell, 0.5))
