"""What student, teachers and ground truth answer in one batch: heatmaps, and the boxes behind the last."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec
from cache.store.batch import TeacherBatch
from cache.store.codec import Encoded
from student.distill.alignment import placement, same_ground
from student.distill.boxes import draw_heatmaps
from student.distill.feature_stats import full
from student.distill.regions import CLIP, fit, strongest
from student.distill.warp import warp_peaks


@dataclass(frozen=True, kw_only=True)
class TeacherMaps:
    """A teacher's view of B samples that comes from elsewhere than a cache; the objective takes it like a TeacherBatch.

    features: by layer name. heatmap: probabilities (or, as uint8, probability * 255) of all classes.
    """

    features: Mapping[str, Float[Tensor, "B _ _ _"] | Encoded]
    heatmap: Float[Tensor, "B K H W"] | UInt8[Tensor, "B K H W"]
    canvas_mask: Bool[Tensor, "B h w"]


Teaching = TeacherBatch | TeacherMaps


def probability(heatmap: Tensor) -> Float[Tensor, "..."]:
    """A heatmap's probabilities, in its shape, from either of its forms."""
    return heatmap if heatmap.is_floating_point() else heatmap.float() / 255


@dataclass(frozen=True, kw_only=True)
class TeacherAnswer:
    """A teacher's heatmap and canvas mask, on grids over the student's ground.

    inside: the cells of the student's heatmap that the teacher knows; None for all. Both maps are 0 in the others.
    """

    heatmap: Float[Tensor, "B K _ _"] | UInt8[Tensor, "B K _ _"]
    canvas_mask: Bool[Tensor, "B _ _"]
    inside: Bool[Tensor, "B H W"] | None = None


def teacher_answer(
    teaching: Teaching, spec: CacheSpec, grid: BevGrid, to_teacher: Float[Tensor, "B 4 4"] | None
) -> TeacherAnswer:
    """The teacher's maps, warped onto the student's grid where they do not lie over its ground.

    Args:
        grid: of the student's heatmaps.
        to_teacher: metres of the student's grid -> metres of the teacher's; None where they are the same.
    """
    grids = spec.heatmap_grid, spec.canvas_grid
    if to_teacher is None and all(same_ground(grid, theirs) for theirs in grids):
        return TeacherAnswer(heatmap=teaching.heatmap, canvas_mask=teaching.canvas_mask)
    matrices = [placement(to_teacher, teaching.heatmap, grid, theirs) for theirs in grids]
    heatmap = warp_peaks(teaching.heatmap, grids[0], grid, matrices[0])
    canvas = warp_peaks(teaching.canvas_mask, grids[1], grid, matrices[1])
    return TeacherAnswer(heatmap=heatmap.features, canvas_mask=canvas.features, inside=heatmap.inside)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The heatmaps of student, teachers and ground truth over the student's classes, and the boxes behind the last.

    boxes: x, y, z, dx, dy, dz, yaw, ... padded to one number a sample.
    channels: the heatmap's channel of each box; -1 for a class that the student does not know.
    task_slices: the channels of each of the head's tasks.
    teacher_order: for each teacher, its heatmap's channel of each of the student's classes.
    """

    boxes: Float[Tensor, "B M 9"]
    channels: Int[Tensor, "B M"]
    task_slices: tuple[slice, ...]
    grid: BevGrid
    student_logits: Float[Tensor, "B K H W"]
    teachers: tuple[TeacherAnswer, ...]
    teacher_order: tuple[tuple[int, ...], ...]
    epoch: int

    @cached_property
    def student_strongest(self) -> Float[Tensor, "B H W"]:
        """The student's probability of the strongest class, without gradient."""
        return full(strongest(self.student_logits)).sigmoid()

    def teacher_strongest(self, cache: int) -> Float[Tensor, "B _ _"]:
        """The teacher's probability of the strongest class."""
        return probability(strongest(self.teachers[cache].heatmap))

    def teacher_on_student(self, cache: int) -> Float[Tensor, "B K H W"]:
        """The teacher's probabilities, away from 0 and 1, in the order of the student's classes and on its grid."""
        heatmap, order = self.teachers[cache].heatmap, self.teacher_order[cache]
        if order != tuple(range(len(order))):
            heatmap = torch.stack([heatmap[:, channel] for channel in order], dim=1)
        return fit(probability(heatmap), self.grid.shape).clamp(CLIP, 1 - CLIP)

    @cached_property
    def truth(self) -> Float[Tensor, "B H W"]:
        """The ground-truth heatmap's strongest class."""
        return self._draw(torch.zeros_like(self.channels), 1)[:, 0]

    @cached_property
    def truth_by_class(self) -> Float[Tensor, "B K H W"]:
        """The ground-truth heatmaps."""
        return self._draw(self.channels.clamp(min=0), self.student_logits.shape[1])

    def _draw(self, channels: Int[Tensor, "B M"], count: int) -> Float[Tensor, "B _ H W"]:
        known = torch.where((self.channels >= 0)[..., None], self.boxes, 0.0)
        return draw_heatmaps(known, channels, count, self.grid)


def class_order(theirs: tuple[str, ...], ours: tuple[str, ...], where: str) -> tuple[int, ...]:
    """The teacher's channel of each of the student's classes.

    Raises:
        MismatchError: the classes are not the same.
    """
    if set(theirs) != set(ours):
        raise MismatchError(
            "teacher and student know different classes",
            where=where,
            got=", ".join(theirs),
            expected=", ".join(ours),
            cure="Set detector.head.tasks to the teacher's classes, or use a teacher of the student's",
        )
    return tuple(theirs.index(name) for name in ours)
