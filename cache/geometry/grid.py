"""BevGrid: range, cell size, axis order and frame of bird's-eye-view maps."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import model_validator

from cache.config import Strict
from cache.errors import ConfigError

Frame = Literal["lidar", "ego"]

MOST_CELLS = 2**14
"""Along an axis."""


class BevGrid(Strict):
    """A rectangle of cells seen from above; cell (0, 0) is at (x_min, y_min).

    Metres are those of `frame`: "lidar" is nuScenes' LIDAR_TOP sensor (x right, y forward, z up) and "ego" the
    vehicle's rear axle (x forward, y left). A feature map of the grid is (C, H, W); with axes "yx" its rows are y
    and its columns x, with "xy" its rows are x and its columns y. In continuous cell coordinates the centre of cell
    (row, column) is (column + 0.5, row + 0.5).
    """

    x_range_m: tuple[float, float]
    y_range_m: tuple[float, float]
    cell_m: tuple[float, float]
    """Size of a cell along x and along y."""
    frame: Frame = "lidar"
    axes: Literal["yx", "xy"] = "yx"
    """Axes of a map's rows and columns."""

    @model_validator(mode="after")
    def _whole_cells(self) -> "BevGrid":
        for name, (low, high), cell in zip("xy", (self.x_range_m, self.y_range_m), self.cell_m, strict=True):
            cells = (high - low) / cell if cell > 0 else 0
            if not cells <= MOST_CELLS or round(cells) < 1 or abs(cells - round(cells)) > 1e-4:
                raise ConfigError(
                    f"the BEV range along {name} is not a whole number of cells",
                    got=f"{low} .. {high} m in cells of {cell} m",
                    expected=f"(max - min) / cell to be a whole number, 1 .. {MOST_CELLS}",
                    cure="Change the range or the cell size",
                )
        return self

    def __str__(self) -> str:
        (x0, x1), (y0, y1), (cell_x, cell_y) = self.x_range_m, self.y_range_m, self.cell_m
        return f"x {x0:g} .. {x1:g} m, y {y0:g} .. {y1:g} m, cells {cell_x:g} x {cell_y:g} m, {self.frame}"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W): numbers of rows and columns."""
        (x0, x1), (y0, y1), (cell_x, cell_y) = self.x_range_m, self.y_range_m, self.cell_m
        return self._by_axis(round((y1 - y0) / cell_y), round((x1 - x0) / cell_x))

    def to_cells(self, xy_m: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Metres (x, y) to continuous cell coordinates (column, row)."""
        return self._swap_axes((xy_m - self._origin) / np.asarray(self.cell_m))

    def to_metres(self, cells: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Continuous cell coordinates (column, row) to metres (x, y)."""
        return self._swap_axes(cells) * np.asarray(self.cell_m) + self._origin

    @property
    def cell_matrix(self) -> Float[np.ndarray, "3 3"]:
        """Metres (x, y, 1) to continuous cell coordinates (column, row, 1): `to_cells` as a matrix."""
        origin, *units = self.to_cells(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        columns = [[*(unit - origin), 0.0] for unit in units]
        return np.array([*columns, [*origin, 1.0]]).T

    def centers_m(self) -> Float[np.ndarray, "H W 2"]:
        """(x, y) of the centre of every cell, in metres."""
        rows, columns = np.mgrid[: self.shape[0], : self.shape[1]]
        return self.to_metres(np.stack([columns, rows], axis=-1) + 0.5)

    def coarser(self, factor: int) -> "BevGrid":
        """The grid over the same range with cells `factor` times as long: that of a map at stride `factor`."""
        return self.model_copy(update={"cell_m": (self.cell_m[0] * factor, self.cell_m[1] * factor)})

    def resized(self, shape: tuple[int, int]) -> "BevGrid":
        """The grid over the same range with H x W cells."""
        (x0, x1), (y0, y1) = self.x_range_m, self.y_range_m
        along_y, along_x = self._by_axis(*shape)
        return self.model_copy(update={"cell_m": ((x1 - x0) / along_x, (y1 - y0) / along_y)})

    @property
    def _origin(self) -> Float[np.ndarray, "2"]:
        return np.asarray([self.x_range_m[0], self.y_range_m[0]])

    def _by_axis(self, along_y: int, along_x: int) -> tuple[int, int]:
        """(along y, along x) to (rows, columns), and back: the swap is its own inverse."""
        return (along_y, along_x) if self.axes == "yx" else (along_x, along_y)

    def _swap_axes(self, pairs: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """(along x, along y) to (column, row), and back."""
        return pairs if self.axes == "yx" else pairs[..., ::-1]
