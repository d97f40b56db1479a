"""The bird's-eye-view grids of an mmdet3d detector, checked against every part that holds range or cells of its own."""

from typing import Any

from cache.errors import ConfigError, TeacherError
from cache.geometry.grid import BevGrid

Detector = Any
"""An mmdet3d detector, an nn.Module whose parts are known at run time only."""
_CURE = "Change the configuration so that all parts have the range and the cells of the voxel layer"


def canvas_grid(voxel_layer: Any, where: str) -> BevGrid:
    """The grid of the pillars, or of the voxels seen from above.

    Raises:
        TeacherError: the range is not a whole number of voxels, which the detector would stretch.
    """
    x0, y0, _, x1, y1, _ = map(float, voxel_layer.point_cloud_range)
    cell_x, cell_y, _ = map(float, voxel_layer.voxel_size)
    try:
        return BevGrid(x_range_m=(x0, x1), y_range_m=(y0, y1), cell_m=(cell_x, cell_y))
    except ConfigError as error:
        raise TeacherError(
            "the detector's range is not a whole number of its voxels",
            where=f"{where}, voxel_layer",
            got=error.got,
            expected=error.expected,
            cure="Change point_cloud_range or voxel_size",
        ) from error


def require_consistent(detector: Detector, canvas: BevGrid, along_x: bool, where: str) -> None:
    """Check that the parts of a detector with a range or a canvas of their own have the voxel layer's.

    Args:
        along_x: whether the rows of the detector's maps run along x; see `rows_along_x`.

    Raises:
        TeacherError: one has another; features would lie elsewhere than the grids say.
    """
    encoder: Any = getattr(detector, "pts_middle_encoder", None)
    if hasattr(encoder, "ny"):
        _require(f"{where}, pts_middle_encoder.output_shape", (encoder.ny, encoder.nx), canvas.shape)
    if hasattr(encoder, "sparse_shape"):
        cells = tuple(encoder.sparse_shape)
        seen, expected = (cells[:2], canvas.shape[::-1]) if along_x else (cells[1:], canvas.shape)
        _require(f"{where}, pts_middle_encoder.sparse_shape{'[:2]' if along_x else '[1:]'}", seen, expected)
    coder: Any = getattr(_head(detector), "bbox_coder", None)
    if hasattr(coder, "pc_range") and hasattr(coder, "out_size_factor"):
        corner = canvas.x_range_m[0], canvas.y_range_m[0]
        _require(f"{where}, bbox_coder.pc_range", _floats(coder.pc_range[:2]), corner)
        _require(f"{where}, bbox_coder.voxel_size", _floats(coder.voxel_size[:2]), canvas.cell_m)


def require_decodable(detector: Detector, canvas: BevGrid, heatmap: tuple[int, int], along_x: bool, where: str) -> None:
    """Check that the head's cells are those in which its coder decodes boxes.

    Raises:
        TeacherError: the maps' rows run along x, or `out_size_factor` is not the stride of the heatmap.
    """
    if along_x:
        raise TeacherError(
            "mmdet3d's CenterHead takes rows for y, and the rows of the detector's maps run along x",
            where=where,
            got="a voxel layer that numbers voxels x, y, z",
            expected="z, y, x",
            cure="Take mmdet3d's voxel layer (model.data_preprocessor.voxel_layer)",
        )
    factor = _head(detector).bbox_coder.out_size_factor
    strides = tuple(round(cells / size, 3) for cells, size in zip(canvas.shape, heatmap, strict=True))
    _require(f"{where}, bbox_coder.out_size_factor", (factor, factor), strides)


def strided(canvas: BevGrid, shape: tuple[int, int], what: str, where: str) -> BevGrid:
    """The grid of a map over the canvas's range.

    Raises:
        TeacherError: the canvas's cells are not a multiple of the map's: its cells would be stretched over the range.
    """
    if any(cells % size for cells, size in zip(canvas.shape, shape, strict=True)):
        raise TeacherError(
            "the cells of a map do not divide the teacher's canvas",
            where=f"{where}, {what}",
            got=f"{shape[0]} x {shape[1]} cells for a canvas of {canvas.shape[0]} x {canvas.shape[1]}",
            expected="a whole stride, so that each cell stands for as many voxels",
            cure="Choose a range that all strides of the backbone divide",
        )
    return canvas.resized(shape)


def _head(detector: Detector) -> Any:
    return getattr(detector, "pts_bbox_head", None) or getattr(detector, "bbox_head", None)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def _require(where: str, got: tuple[float, ...], expected: tuple[float, ...]) -> None:
    if any(abs(a - b) > 1e-6 for a, b in zip(got, expected, strict=True)):
        raise TeacherError(
            "a part of the detector has another range or other cells than its voxels",
            where=where,
            got=got,
            expected=expected,
            cure=_CURE,
        )
