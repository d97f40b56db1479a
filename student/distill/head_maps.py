"""Head maps of a centre head at single cells, and a teacher's boxes in the student's BEV frame.

Only cells with objects are read, so a warped teacher needs no warped head maps: a point is moved to the teacher's
frame, its box is read there, and the box is moved back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cache.geometry.grid import BevGrid

HEAD_MAPS = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Channels of a task's maps: offset in the cell (x, y), z, log dx, dy, dz, sine and cosine of yaw, velocity.
Concatenated in this order they are a box's code, which `code_weights` weight."""

Maps = Mapping[str, Float[Tensor, "B T _ H W"]]


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Boxes of B samples, padded with boxes without a size.

    boxes: x, y, z (bottom), dx, dy, dz, yaw, vx, vy in the student's BEV frame.
    channels: each box's channel of the student's heatmap; -1 for a class that the student does not have.
    scores: 1 for labels; 0 for padding.
    """

    boxes: Float[Tensor, "B M 9"]
    channels: Int[Tensor, "B M"]
    scores: Float[Tensor, "B M"]

    def of_samples(self, chosen: tuple[bool, ...]) -> "Objects":
        """The same, without the boxes of the other samples."""
        if all(chosen):
            return self
        keep = torch.tensor(chosen).to(self.boxes.device, non_blocking=True)[:, None]
        return Objects(
            boxes=torch.where(keep[..., None], self.boxes, 0.0),
            channels=torch.where(keep, self.channels, -1),
            scores=torch.where(keep, self.scores, 0.0),
        )

    def __add__(self, other: "Objects") -> "Objects":
        return Objects(
            **{name: torch.cat([getattr(self, name), getattr(other, name)], dim=1) for name in self.__dict__}
        )


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of a grid that P points of B samples lie in.

    inside: points beyond the grid are in no cell; their row and column are those of the nearest one.
    """

    row: Int[Tensor, "B P"]
    column: Int[Tensor, "B P"]
    inside: Bool[Tensor, "B P"]

    @classmethod
    def of(cls, xy_m: Float[Tensor, "B P 2"], grid: BevGrid) -> "Cells":
        """The cells of points in the grid's metres."""
        (height, width), (u, v) = grid.shape, in_cells(xy_m, grid).unbind(-1)
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        return cls(row=v.long().clamp(0, height - 1), column=u.long().clamp(0, width - 1), inside=inside)

    def within(self, valid_mask: Bool[Tensor, "B H W"] | None) -> Bool[Tensor, "B P"]:
        """Which points lie in valid cells of the grid (default: all)."""
        if valid_mask is None:
            return self.inside
        sample = torch.arange(len(self.row), device=self.row.device)[:, None]
        return self.inside & valid_mask[sample, self.row, self.column]


def in_cells(xy_m: Float[Tensor, "*n 2"], grid: BevGrid) -> Float[Tensor, "*n 2"]:
    """Metres (x, y) to continuous cell coordinates (column, row)."""
    parts = zip(xy_m.unbind(-1), (grid.x_range_m[0], grid.y_range_m[0]), grid.cell_m, strict=True)
    return torch.stack([(part - low) / cell for part, low, cell in parts], dim=-1)


def in_metres(cells: Float[Tensor, "*n 2"], grid: BevGrid) -> Float[Tensor, "*n 2"]:
    """Continuous cell coordinates (column, row) to metres (x, y)."""
    parts = zip(cells.unbind(-1), (grid.x_range_m[0], grid.y_range_m[0]), grid.cell_m, strict=True)
    return torch.stack([part * cell + low for part, low, cell in parts], dim=-1)


def codes_at(maps: Maps, cells: Cells, task: Int[Tensor, "B P"]) -> Float[Tensor, "B P 10"]:
    """The codes of boxes, in the order of HEAD_MAPS, with x and y in cells from the grid's corner."""
    sample = torch.arange(len(task), device=task.device)[:, None]
    codes = torch.cat([maps[name][sample, task, :, cells.row, cells.column] for name in HEAD_MAPS], dim=-1)
    codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
    corner = torch.stack([cells.column, cells.row], dim=-1).to(codes.dtype)
    return torch.cat([codes[..., :2] + corner, codes[..., 2:]], dim=-1)


@dataclass(frozen=True, kw_only=True)
class TeacherBoxes:
    """A teacher's head maps on its own grid, read in the student's frame.

    heatmap: probabilities of the student's classes, in its order, on the teacher's grid.
    maps: the head's other maps. task_of_channel: the teacher's task of each of the student's classes.
    student: the student's grid, in whose cells x and y of codes are.
    to_teacher: metres of the student's grid -> metres of the teacher's; None where they are the same.
    """

    heatmap: Float[Tensor, "B K h w"]
    maps: Maps
    task_of_channel: Int[Tensor, "K"]
    grid: BevGrid
    student: BevGrid
    to_teacher: Float[Tensor, "B 4 4"] | None = None
    log_dimensions: bool = True

    def at(self, xy_m: Float[Tensor, "B P 2"], channel: Int[Tensor, "B P"]) -> tuple[Tensor, Bool[Tensor, "B P"]]:
        """The teacher's codes (B, P, 10) at points of the student's metres, and which lie on the teacher's grid."""
        if self.to_teacher is not None:
            matrix = self.to_teacher.to(xy_m.device, xy_m.dtype, non_blocking=True)
            xy_m = xy_m @ matrix[:, :2, :2].mT + matrix[:, None, :2, 3]
        cells = Cells.of(xy_m, self.grid)
        return self._codes(cells, channel), cells.inside

    @torch.no_grad()
    def peaks(self, count: int, threshold: float) -> tuple[Objects, Float[Tensor, "B P 10"]]:
        """The boxes at the `count` highest peaks of each sample's heatmap, and their codes.

        A peak is the largest of its 3 x 3 cells, and above the threshold.
        """
        peak = F.max_pool2d(self.heatmap, 3, stride=1, padding=1) == self.heatmap
        score = torch.where(peak & (self.heatmap > threshold), self.heatmap, 0.0).flatten(1)
        score, index = score.topk(min(count, score.shape[1]), dim=1)
        height, width = self.grid.shape
        row, column = index % (height * width) // width, index % width
        channel = index // (height * width)
        codes = self._codes(Cells(row=row, column=column, inside=torch.ones_like(score, dtype=torch.bool)), channel)
        boxes = boxes_of(codes, self.student)
        found = score > 0
        objects = Objects(
            boxes=torch.where(found[..., None], boxes, 0.0).double(),
            channels=torch.where(found, channel, -1),
            scores=score,
        )
        return objects, codes

    def _codes(self, cells: Cells, channel: Int[Tensor, "B P"]) -> Float[Tensor, "B P 10"]:
        codes = codes_at(self.maps, cells, self.task_of_channel[channel.clamp(min=0)]).detach()
        xy, z, size, heading, velocity = codes.split([2, 1, 3, 2, 2], dim=-1)
        if not self.log_dimensions:
            size = size.clamp(min=1e-3).log()
        xy = in_metres(xy, self.grid)
        if self.to_teacher is not None:
            # `to_teacher` is on the CPU, where inverse and determinant wait for no device.
            inverse = torch.linalg.inv(self.to_teacher.double())
            scale = torch.linalg.det(inverse[:, :3, :3]).abs()[:, None, None] ** (1 / 3)
            back, scale = (part.to(xy.device, xy.dtype, non_blocking=True) for part in (inverse, scale))
            place = torch.cat([xy, z], dim=-1) @ back[:, :3, :3].mT + back[:, None, :3, 3]
            xy, z = place.split([2, 1], dim=-1)
            size = size + scale.log()
            # (cos, sin) turns as a vector does; the code has the sine first.
            heading = (heading.flip(-1) @ back[:, :2, :2].mT / scale).flip(-1)
            velocity = velocity @ back[:, :2, :2].mT
        return torch.cat([in_cells(xy, self.student), z, size, heading, velocity], dim=-1)


def boxes_of(codes: Float[Tensor, "B P 10"], grid: BevGrid) -> Float[Tensor, "B P 9"]:
    """Codes as boxes in the grid's metres, z at their bottom."""
    xy, z, size, heading, velocity = codes.split([2, 1, 3, 2, 2], dim=-1)
    size = size.exp()
    yaw = torch.atan2(heading[..., :1], heading[..., 1:])
    return torch.cat([in_metres(xy, grid), z - size[..., 2:] / 2, size, yaw, velocity], dim=-1)
