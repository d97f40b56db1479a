"""Warp of BEV maps from one grid to another through metres: augmentation, other ranges, cells and frames.

A teacher's output moves with the scene when that is rotated, scaled or flipped, up to its convolutions' dependence on
the axes. So its maps are sampled at the student's cells, transformed into the frame that the teacher ran in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from cache.geometry.grid import BevGrid
from cache.store.codec import Encoded
from student.distill.device import on_device
from student.distill.parallel import parallel_map, single_threaded

Maps = TypeVar("Maps", Tensor, Encoded, Tensor | Encoded)

SNAP_CELLS = 1e-4
"""A sample point nearer than this to a cell's centre is moved there: flips and quarter turns, which float32 matrices
represent to about 1e-5 cells, then are exact and lose no cell at the edge."""
SLACK_CELLS = 0.1
"""A cell longer than the source's by no more than this is sampled at its centre alone. At that spacing bilinear
sampling gives each source cell 0.9 of its weight or more; a BEV scale of 0.95 needs 1.05."""
BLOCK = 2**18
"""Elements that a CPU interpolates at once: 1 MB of float32, which stays in its cache."""


@dataclass(frozen=True, kw_only=True)
class Warped(Generic[Maps]):
    """Maps on the target's grid, and their valid cells.

    features: (B, ..., H, W); 0 stands for values outside the source's range.
    valid_mask: cells interpolated from values inside the source's range only.
    """

    features: Maps
    valid_mask: Bool[Tensor, "B H W"]


def warp(features: Maps, source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> Warped[Maps]:
    """Features (B, C, h, w) over `source`, interpolated bilinearly at the centres of the cells of `target`.

    The identity, flips and quarter turns are exact and keep all cells. A cell longer than the source's gets the mean
    over s x s sample points spread over it, s = ceil(ratio of lengths), so that no source cell is skipped.

    Float features become float32 (float64 stays), with gradients. Stored ones stay small: their codes are interpolated
    block by block into float16, in which whole codes are exact, and keep their scales; companded codes become uniform.

    Args:
        to_source: metres (x, y, 0) of the target's frame -> metres of the source's frame; on the CPU, so that no device
            is waited for.
    """
    device = features.values.device if isinstance(features, Encoded) else features.device
    points = _bilinear_points(source, target, to_source, device)
    if isinstance(features, Encoded):
        return Warped(features=_warp_stored(features, points.unit), valid_mask=points.valid_mask)
    return Warped(features=_interpolate(features, points.unit), valid_mask=points.valid_mask)


def warp_max(
    maps: Shaped[Tensor, "B *K h w"], source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]
) -> Warped[Tensor]:
    """Heatmaps or masks of any dtype: each cell of `target` gets the maximum of the source's cells that it touches.

    Interpolation would lower a peak, by three quarters at worst. Here s x s sample points are spread over a cell,
    s = ceil(sqrt(2) ratio of lengths): no source cell fits between points at most 1 / sqrt(2) of its length apart, so
    every peak keeps its height, at times in two or three neighbouring cells. The identity, flips and quarter turns are
    exact. The valid mask is that of `warp`.
    """
    per_side = math.ceil(math.sqrt(2) * _cells_across(source, target, to_source))
    points = _sample_points(source, target, to_source, per_side, maps.device)
    samples = _sample(maps.reshape(len(maps), -1, *source.shape), points.unit, "nearest")
    largest = reduce(torch.maximum, samples).reshape(*maps.shape[:-2], *target.shape)
    valid_mask = _bilinear_points(source, target, to_source, maps.device).valid_mask
    return Warped(features=largest.to(maps.dtype), valid_mask=valid_mask)


def to_teacher(
    student: BevGrid,
    teacher: BevGrid,
    view_matrix: Float[Tensor, "B 4 4"],
    bev_matrix: Float[Tensor, "B 4 4"],
    lidar_to_ego: Float[Tensor, "B 4 4"],
) -> Float[Tensor, "B 4 4"] | None:
    """Metres of the student's augmented BEV frame -> those of the teacher's view, E_t V M^-1 E_s^-1; on the CPU.

    E is lidar_to_ego for a grid in the ego frame, else the identity.

    Args:
        view_matrix: V, canonical LiDAR -> the teacher's view.
        bev_matrix: M, LiDAR -> augmented BEV: the student's augmentation.

    Returns:
        None where the frames are the same and nothing within 100 m moves by more than 0.1 mm.
    """
    view, augmentation, to_ego = (matrix.double().cpu() for matrix in (view_matrix, bev_matrix, lidar_to_ego))
    ours, theirs = (to_ego if grid.frame == "ego" else torch.eye(4).to(to_ego) for grid in (student, teacher))
    moved = theirs @ view @ torch.linalg.inv(ours @ augmentation)
    shift_m = (moved - torch.eye(4)).abs() * torch.tensor([100.0, 100.0, 100.0, 1.0])
    return None if student.frame == teacher.frame and shift_m.max() < 1e-4 else moved


@dataclass(frozen=True, kw_only=True)
class _SamplePoints:
    """S points spread evenly over each cell of a target, in a source's coordinates.

    unit: as for grid_sample, -1 and 1 at the outer edges of a map padded by `_pad`.
    valid_mask: cells whose points all lie between the centres of the source's outermost cells.
    """

    unit: Float[Tensor, "B S H W 2"]
    valid_mask: Bool[Tensor, "B H W"]


@single_threaded()
def _sample_points(
    source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"], per_side: int, device: torch.device
) -> _SamplePoints:
    """`per_side` x `per_side` points in each cell; computed in float64, far more precise than `SNAP_CELLS`."""
    matrix = _between_cells(source, target, to_source).to(device, non_blocking=True)
    by_column, by_row, offset = matrix[:, None, None, :2].unbind(dim=-1)
    part = (torch.arange(per_side, device=device).to(offset.dtype) + 0.5) / per_side
    rows, columns = ((part[:, None] + torch.arange(cells, device=device))[..., None] for cells in target.shape)
    # Counted from the centre of the source's first cell: whole numbers are centres.
    at = (rows * by_row + offset - 0.5)[:, :, None, :, None] + (columns * by_column)[:, None, :, None, :]
    at = at.flatten(1, 2)
    centre = at.round()
    at = torch.where((at - centre).abs() < SNAP_CELLS, centre, at)
    width_height = source.shape[::-1]
    valid = (at >= 0) & (at <= on_device(width_height, at) - 1)
    sides = on_device([_padded(side) for side in width_height], at)
    return _SamplePoints(unit=((2 * at + 1) / sides - 1).float(), valid_mask=valid.all(dim=-1).all(dim=1))


def _bilinear_points(
    source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"], device: torch.device
) -> _SamplePoints:
    per_side = math.ceil(_cells_across(source, target, to_source) - SLACK_CELLS)
    return _sample_points(source, target, to_source, max(1, per_side), device)


def _cells_across(source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> float:
    """The length of a target cell in source cells: the largest over its directions and the samples."""
    linear = _between_cells(source, target, to_source)[:, :2, :2]
    return float(torch.linalg.matrix_norm(linear, ord=2).max())


def _between_cells(source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 3 3"]:
    """The target's continuous cell coordinates (column, row, 1) -> the source's, in the plane z = 0."""
    planar = to_source.double()[:, [0, 1, 3]][:, :, [0, 1, 3]]
    ours, theirs = (torch.from_numpy(grid.cell_matrix).to(planar) for grid in (target, source))
    return theirs @ planar @ torch.linalg.inv(ours)


def _padded(side: int) -> int:
    """The next power of two: then grid_sample's arithmetic in float32 is exact at centres, and so are flips."""
    return 1 << (side - 1).bit_length()


def _pad(maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C _ _"]:
    height, width = maps.shape[-2:]
    wider = (0, _padded(width) - width, 0, _padded(height) - height)
    return F.pad(maps, wider) if any(wider) else maps


def _interpolate(maps: Float[Tensor, "B C h w"], unit: Float[Tensor, "B S H W 2"]) -> Float[Tensor, "B C H W"]:
    """The mean over each cell's sample points, bilinear."""
    total = reduce(torch.add, _sample(maps, unit, "bilinear"))
    return total / unit.shape[1] if unit.shape[1] > 1 else total


def _sample(
    maps: Shaped[Tensor, "B C h w"], unit: Float[Tensor, "B S H W 2"], mode: Literal["bilinear", "nearest"]
) -> Iterator[Float[Tensor, "B C H W"]]:
    """The values at the S sample points in turn; 0 outside the source."""
    wide = _pad(maps.to(torch.promote_types(maps.dtype, torch.float32)))
    for points in unit.unbind(dim=1):
        yield F.grid_sample(wide, points.to(wide), mode=mode, align_corners=False)


def _warp_stored(features: Encoded, unit: Float[Tensor, "B S H W 2"]) -> Encoded:
    """Codes as float16; on a CPU one thread a sample, in blocks that stay in its cache."""
    values = features.values
    samples, channels, height, width = values.shape
    warped = values.new_empty(samples, channels, *unit.shape[2:4], dtype=torch.float16)
    on_cpu = values.device.type == "cpu"
    step = max(1, BLOCK // (_padded(height) * _padded(width))) if on_cpu else channels

    def fill(sample: int, codes: Tensor) -> None:
        buffer = torch.zeros(1, step, _padded(height), _padded(width), device=codes.device)
        for start in range(0, channels, step):
            block = codes[start : start + step]
            # With a scale of 1, features are uniform codes, from companded ones too.
            uniform = replace(features, values=block, scale=torch.ones(len(block), device=codes.device))
            wide = buffer[:, : len(block)]
            wide[0, :, :height, :width] = uniform.decode()
            warped[sample, start : start + step] = _interpolate(wide, unit[sample : sample + 1])[0]

    parallel_map(values.unbind(), fill, values.device)
    return replace(features, values=warped, codec=features.codec.model_copy(update={"companding": 1.0}))
