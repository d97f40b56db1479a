"""Maps of one BEV grid as another grid sees them, through metres: augmentation, other ranges and cells, other frames.

A teacher says the same of the same ground when the student's frame is turned, scaled or mirrored, up to what its
convolutions see of the grid's axes. So its maps are read where the student's cells lie in the frame it ran in.
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
from student.distill.threads import for_each, one_thread

Maps = TypeVar("Maps", Tensor, Encoded, Tensor | Encoded)

SNAP_CELLS = 1e-4
"""A place nearer than this to a cell's centre is that centre: flips and quarter turns, which float32 matrices hold to
about 1e-5 cells, then lose no cell at the edge and mix nothing in."""
SLACK_CELLS = 0.1
"""A cell that is longer by no more than this than the source's is read at its centre alone. At that spacing bilinear
reading gives each of the source's cells 0.9 of its weight or more; a BEV scale of 0.95 asks for 1.05."""
BLOCK = 2**18
"""Numbers that a CPU interpolates at once: 1 MB of float32, which stays in its cache."""


@dataclass(frozen=True, kw_only=True)
class Warped(Generic[Maps]):
    """Maps on the target's grid, and where they mean something.

    features: (B, ..., H, W); what lies outside the source's range counts as 0.
    inside: the cells all of whose neighbours of a weight above 0 lie in the source's range.
    """

    features: Maps
    inside: Bool[Tensor, "B H W"]


def warp(features: Maps, source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> Warped[Maps]:
    """Features (B, C, h, w) over `source`, interpolated bilinearly at the centres of the cells of `target`.

    The identity, flips and quarter turns are exact and keep all cells. A cell that is longer than the source's gets the
    mean over s x s places spread over it, s = ceil(how many times as long), so that nothing is skipped.

    Float features come out as float32 (float64 if they are), with their gradients. Stored ones stay small: their codes
    are interpolated a block at a time into float16, in which whole codes are exact, and keep their scales; companded
    codes become uniform ones.

    Args:
        to_source: metres (x, y, 0) of the target's frame -> metres of the source's frame. On the CPU there is no wait
            for a device.
    """
    device = features.values.device if isinstance(features, Encoded) else features.device
    places = _bilinear_places(source, target, to_source, device)
    warped = (
        _warp_stored(features, places.unit) if isinstance(features, Encoded) else _interpolate(features, places.unit)
    )
    return Warped(features=warped, inside=places.inside)


def warp_peaks(
    maps: Shaped[Tensor, "B *K h w"], source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]
) -> Warped[Tensor]:
    """Heatmaps or masks of any type: each cell of `target` gets the largest of the source's cells that it touches.

    Interpolation would lower a peak, by three quarters at worst. Here the cells that hold s x s places spread over the
    target's are looked up, s = ceil(sqrt(2) how many times as long): among places no more than 1 / sqrt(2) of a cell
    apart no cell can lie without holding one, so every peak arrives at its height, at times in two or three
    neighbouring cells. The identity, flips and quarter turns are exact. `inside` is that of `warp`.
    """
    per_side = math.ceil(math.sqrt(2) * _cells_across(source, target, to_source))
    places = _spread(source, target, to_source, per_side, maps.device)
    read = _read(maps.reshape(len(maps), -1, *source.shape), places.unit, "nearest")
    largest = reduce(torch.maximum, read).reshape(*maps.shape[:-2], *target.shape)
    inside = _bilinear_places(source, target, to_source, maps.device).inside
    return Warped(features=largest.to(maps.dtype), inside=inside)


def to_teacher(
    student: BevGrid,
    teacher: BevGrid,
    view_matrix: Float[Tensor, "B 4 4"],
    bev_matrix: Float[Tensor, "B 4 4"],
    lidar_to_ego: Float[Tensor, "B 4 4"],
) -> Float[Tensor, "B 4 4"] | None:
    """Metres of the student's augmented BEV frame -> those of the teacher's view, E_t V M^-1 E_s^-1; on the CPU.

    E is lidar_to_ego for a grid of the vehicle's frame, else the identity.

    Args:
        view_matrix: V, canonical LiDAR -> the view that the teacher saw.
        bev_matrix: M, LiDAR -> augmented BEV, the student's realised augmentation.

    Returns:
        None where the frames are the same and nothing within 100 m moves by more than 0.1 mm.
    """
    view, realised, to_ego = (matrix.double().cpu() for matrix in (view_matrix, bev_matrix, lidar_to_ego))
    ours, theirs = (to_ego if grid.frame == "ego" else torch.eye(4).to(to_ego) for grid in (student, teacher))
    moved = theirs @ view @ torch.linalg.inv(ours @ realised)
    shift_m = (moved - torch.eye(4)).abs() * torch.tensor([100.0, 100.0, 100.0, 1.0])
    return None if student.frame == teacher.frame and shift_m.max() < 1e-4 else moved


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where each cell of a target is read on a source: at S places, spread evenly over it.

    unit: as grid_sample counts, -1 and 1 at the outer edges of a map that `_pad` has padded.
    inside: cells all of whose places lie between the centres of the source's outermost cells.
    """

    unit: Float[Tensor, "B S H W 2"]
    inside: Bool[Tensor, "B H W"]


@one_thread()
def _spread(
    source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"], per_side: int, device: torch.device
) -> _Places:
    """`per_side` x `per_side` places; formed in float64, with room to spare to `SNAP_CELLS`."""
    by_column, by_row, offset = _between_cells(source, target, to_source).to(device)[:, None, None, :2].unbind(dim=-1)
    part = (torch.arange(per_side).to(offset) + 0.5) / per_side
    rows, columns = ((part[:, None] + torch.arange(cells).to(offset))[..., None] for cells in target.shape)
    # Counted from the centre of the source's first cell: whole numbers are centres.
    at = (rows * by_row + offset - 0.5)[:, :, None, :, None] + (columns * by_column)[:, None, :, None, :]
    at = at.flatten(1, 2)
    centre = at.round()
    at = torch.where((at - centre).abs() < SNAP_CELLS, centre, at)
    width_height = source.shape[::-1]
    inside = (at >= 0) & (at <= at.new_tensor(width_height) - 1)
    sides = at.new_tensor([_padded(side) for side in width_height])
    return _Places(unit=((2 * at + 1) / sides - 1).float(), inside=inside.all(dim=-1).all(dim=1))


def _bilinear_places(
    source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"], device: torch.device
) -> _Places:
    per_side = math.ceil(_cells_across(source, target, to_source) - SLACK_CELLS)
    return _spread(source, target, to_source, max(1, per_side), device)


def _cells_across(source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> float:
    """How many of the source's cells a cell of the target is long, at most: over its directions and the samples."""
    linear = _between_cells(source, target, to_source)[:, :2, :2]
    return float(torch.linalg.matrix_norm(linear, ord=2).max())


def _between_cells(source: BevGrid, target: BevGrid, to_source: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 3 3"]:
    """The target's continuous cell coordinates (column, row, 1) -> the source's, over the ground z = 0."""
    ground = to_source.double()[:, [0, 1, 3]][:, :, [0, 1, 3]]
    ours, theirs = (torch.from_numpy(grid.cell_matrix).to(ground) for grid in (target, source))
    return theirs @ ground @ torch.linalg.inv(ours)


def _padded(side: int) -> int:
    """The next power of two: then grid_sample's arithmetic in float32 is exact at centres, and so are flips."""
    return 1 << (side - 1).bit_length()


def _pad(maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C _ _"]:
    height, width = maps.shape[-2:]
    wider = (0, _padded(width) - width, 0, _padded(height) - height)
    return F.pad(maps, wider) if any(wider) else maps


def _interpolate(maps: Float[Tensor, "B C h w"], unit: Float[Tensor, "B S H W 2"]) -> Float[Tensor, "B C H W"]:
    """The mean over each cell's places."""
    total = reduce(torch.add, _read(maps, unit, "bilinear"))
    return total / unit.shape[1] if unit.shape[1] > 1 else total


def _read(
    maps: Shaped[Tensor, "B C h w"], unit: Float[Tensor, "B S H W 2"], mode: Literal["bilinear", "nearest"]
) -> Iterator[Float[Tensor, "B C H W"]]:
    """The values at each cell's places, one place of all cells after the other; 0 where there is no cell."""
    wide = _pad(maps.to(torch.promote_types(maps.dtype, torch.float32)))
    for places in unit.unbind(dim=1):
        yield F.grid_sample(wide, places.to(wide), mode=mode, align_corners=False)


def _warp_stored(features: Encoded, unit: Float[Tensor, "B S H W 2"]) -> Encoded:
    """Codes as float16; each sample is a thread's on a CPU, in blocks that stay in the cache."""
    values = features.values
    samples, channels, height, width = values.shape
    warped = values.new_empty(samples, channels, *unit.shape[2:4], dtype=torch.float16)
    on_cpu = values.device.type == "cpu"
    step = max(1, BLOCK // (_padded(height) * _padded(width))) if on_cpu else channels

    def fill(sample: int, codes: Tensor) -> None:
        room = torch.zeros(1, step, _padded(height), _padded(width), device=codes.device)
        for start in range(0, channels, step):
            block = codes[start : start + step]
            # Where every step is 1, features are their codes, and companded ones those of a uniform code.
            uniform = replace(features, values=block, scale=torch.ones(len(block), device=codes.device))
            wide = room[:, : len(block)]
            wide[0, :, :height, :width] = uniform.decode()
            warped[sample, start : start + step] = _interpolate(wide, unit[sample : sample + 1])[0]

    if on_cpu:
        for_each(values.unbind(), fill)
    else:
        for sample, codes in enumerate(values):
            fill(sample, codes)
    return replace(features, values=warped, codec=features.codec.model_copy(update={"companding": 1.0}))
