"""Heatmaps of student, teachers and ground truth in one batch, and the boxes of the last."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec
from cache.store.batch import TeacherBatch
from cache.store.codec import Encoded
from student.distill.alignment import alignment_matrix, same_extent
from student.distill.feature_stats import full_precision
from student.distill.gaussians import draw_heatmaps
from student.distill.head_maps import HEAD_MAPS, Maps, Objects, TeacherBoxes
from student.distill.regions import CLIP, max_over_classes, resize_map
from student.distill.warp import warp_max


@dataclass(frozen=True, kw_only=True)
class TeacherMaps:
    """A teacher's maps of B samples that do not come from a cache; the objective takes them like a TeacherBatch.

    features: by layer name. heatmap: probabilities (or, as uint8, probability * 255) of all classes; of a teacher
        without heatmaps it has no channels. head_maps: the head's other maps, for terms that compare boxes.
    """

    features: Mapping[str, Float[Tensor, "B _ _ _"] | Encoded]
    heatmap: Float[Tensor, "B K H W"] | UInt8[Tensor, "B K H W"]
    canvas_mask: Bool[Tensor, "B h w"]
    head_maps: Mapping[str, Float[Tensor, "B T _ H W"]] = field(default_factory=dict)


TeacherInput = TeacherBatch | TeacherMaps


def as_probability(heatmap: Tensor) -> Float[Tensor, "..."]:
    """Probabilities from a float or uint8 heatmap of any shape."""
    return heatmap if heatmap.is_floating_point() else heatmap.float() / 255


@dataclass(frozen=True, kw_only=True)
class TeacherPredictions:
    """A teacher's heatmap and canvas mask on grids of the student's extent.

    valid_mask: the cells of the student's heatmap inside the teacher's range; None for all. Both maps are 0 elsewhere.
    """

    heatmap: Float[Tensor, "B K _ _"] | UInt8[Tensor, "B K _ _"]
    canvas_mask: Bool[Tensor, "B _ _"]
    valid_mask: Bool[Tensor, "B H W"] | None = None


def align_predictions(
    maps: TeacherInput, spec: CacheSpec, grid: BevGrid, to_teacher: Float[Tensor, "B 4 4"] | None
) -> TeacherPredictions:
    """The teacher's predictions, warped to the student's heatmap grid where the extents differ.

    Args:
        to_teacher: metres of the student's grid -> metres of the teacher's; None where they are the same.
    """
    grids = spec.heatmap_grid, spec.canvas_grid
    if to_teacher is None and all(same_extent(grid, theirs) for theirs in grids):
        return TeacherPredictions(heatmap=maps.heatmap, canvas_mask=maps.canvas_mask)
    classes = maps.heatmap.shape[1]
    # A teacher without heatmaps has no channel; the valid mask is that of one.
    values = maps.heatmap if classes else maps.heatmap.new_zeros(len(maps.heatmap), 1, *spec.heatmap_grid.shape)
    heatmap, canvas = (
        warp_max(values, theirs, grid, alignment_matrix(to_teacher, len(values), grid, theirs))
        for values, theirs in zip((values, maps.canvas_mask), grids, strict=True)
    )
    return TeacherPredictions(
        heatmap=heatmap.features[:, :classes], canvas_mask=canvas.features, valid_mask=heatmap.valid_mask
    )


@dataclass(frozen=True, kw_only=True)
class StudentDepth:
    """A student's depth in the current images, and the LiDAR points that it learns from.

    logits: of the depth bins, in patches of the images.
    depth_m: of the nearest LiDAR point in each patch; 0 without a point.
    points_m: that point (x, y, z) in the BEV frame of the boxes.
    bins_m: nearest, farthest and size of the bins.
    """

    logits: Float[Tensor, "B N D h w"]
    depth_m: Float[Tensor, "B N h w"]
    points_m: Float[Tensor, "B N h w 3"]
    bins_m: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class BatchPredictions:
    """The heatmaps of student, teachers and ground truth over the student's classes, and the boxes of the last.

    boxes: x, y, z, dx, dy, dz, yaw, ...; padded to the same number in each sample. On samples without labels, or with
        `foreground: teacher`, they are a teacher's.
    channels: each box's channel of the heatmap; -1 for a class that the student does not have.
    task_slices: the channels of each of the head's tasks.
    teacher_order: for each teacher, its heatmap's channel of each of the student's classes.
    task_of_channel: the student's task of each of its classes.
    student_maps: the student's other head maps. teacher_boxes: by cache, of the teachers whose boxes are compared.
    teacher_heads: by cache, the teachers' heads, features -> heatmap logits and other maps.
    """

    boxes: Float[Tensor, "B M 9"]
    channels: Int[Tensor, "B M"]
    task_slices: tuple[slice, ...]
    grid: BevGrid
    student_logits: Float[Tensor, "B K H W"]
    teachers: tuple[TeacherPredictions, ...]
    teacher_order: tuple[tuple[int, ...], ...]
    epoch: int
    task_of_channel: Int[Tensor, "K"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    student_maps: Maps | None = None
    teacher_boxes: Mapping[int, TeacherBoxes] = field(default_factory=dict)
    teacher_heads: Mapping[int, nn.Module] = field(default_factory=dict)
    depth: StudentDepth | None = None

    @property
    def objects(self) -> Objects:
        """The boxes, all of score 1."""
        return Objects(
            boxes=self.boxes, channels=self.channels, scores=torch.ones_like(self.channels, dtype=torch.float32)
        )

    def maps_of_student(self, label: str) -> Maps:
        """The student's head maps, for the term of that label.

        Raises:
            MismatchError: the objective was not given them.
        """
        if self.student_maps is None or not HEAD_MAPS.keys() <= self.student_maps.keys():
            raise MismatchError(
                "a term compares the student's boxes, and its head's maps are missing",
                where=f"distill.terms, {label}",
                got=", ".join(self.student_maps or ()) or "no maps",
                expected=", ".join(HEAD_MAPS),
                cure="Pass `student_maps` to the objective, as student.training does",
            )
        return self.student_maps

    def boxes_of(self, cache: int) -> TeacherBoxes:
        """The boxes of a teacher that the configuration says are compared."""
        return self.teacher_boxes[cache]

    @cached_property
    def student_max(self) -> Float[Tensor, "B H W"]:
        """The student's largest probability of any class, without gradient."""
        return full_precision(max_over_classes(self.student_logits)).sigmoid()

    @cached_property
    def student_probability(self) -> Float[Tensor, "B K H W"]:
        """The student's probabilities, clamped to CLIP .. 1 - CLIP."""
        return clipped_sigmoid(full_precision(self.student_logits))

    def teacher_max(self, cache: int) -> Float[Tensor, "B _ _"]:
        """A teacher's largest probability of any class that the student has."""
        heatmap, order = self.teachers[cache].heatmap, self.teacher_order[cache]
        if len(order) != heatmap.shape[1]:
            heatmap = in_order(heatmap, order)
        return as_probability(max_over_classes(heatmap))

    def teacher_probability(self, cache: int) -> Float[Tensor, "B K H W"]:
        """A teacher's probabilities, clamped to CLIP .. 1 - CLIP, for the student's classes and on its grid."""
        heatmap = in_order(self.teachers[cache].heatmap, self.teacher_order[cache])
        return resize_map(as_probability(heatmap), self.grid.shape).clamp(CLIP, 1 - CLIP)

    @cached_property
    def truth_max(self) -> Float[Tensor, "B H W"]:
        """The ground-truth heatmap of all classes in one."""
        return self._draw(torch.zeros_like(self.channels), 1)[:, 0]

    @cached_property
    def truth(self) -> Float[Tensor, "B K H W"]:
        """The ground-truth heatmaps by class."""
        return self._draw(self.channels.clamp(min=0), self.student_logits.shape[1])

    def _draw(self, channels: Int[Tensor, "B M"], count: int) -> Float[Tensor, "B _ H W"]:
        known = torch.where((self.channels >= 0)[..., None], self.boxes, 0.0)
        return draw_heatmaps(known, channels, count, self.grid)


def in_order(heatmap: Shaped[Tensor, "B _ H W"], order: tuple[int, ...]) -> Shaped[Tensor, "B _ H W"]:
    """A heatmap's channels in an order; without a copy where it is their own.

    Indexing with a list would copy that to the device, and wait.
    """
    if order == tuple(range(heatmap.shape[1])):
        return heatmap
    return torch.stack([heatmap[:, channel] for channel in order], dim=1)


def clipped_sigmoid(logits: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Probabilities clamped to CLIP .. 1 - CLIP, as in CenterPoint's losses."""
    return logits.sigmoid().clamp(CLIP, 1 - CLIP)


def class_order(theirs: tuple[str, ...], ours: tuple[str, ...], where: str) -> tuple[int, ...]:
    """The teacher's channel of each of the student's classes; the teacher may have others beside them.

    Raises:
        MismatchError: the teacher lacks a class of the student's.
    """
    if not set(ours) <= set(theirs):
        raise MismatchError(
            "the teacher lacks a class of the student's",
            where=where,
            got=", ".join(theirs),
            expected=", ".join(ours),
            cure="Set detector.head.tasks to classes of the teacher's, or use a teacher that has the student's",
        )
    return tuple(theirs.index(name) for name in ours)
