"""What the terms look at in one batch: adapted pairs of feature maps, heatmaps, boxes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from cache.codec import Encoded
from cache.errors import ConfigError, MismatchError
from cache.grid import BevGrid
from cache.reader import TeacherBatch
from student.distill.adapters import (
    FeatureLayer,
    adapted_grid,
    build_adapter,
    changes_channels,
    require_same_grid,
)
from student.distill.boxes import draw_heatmaps
from student.distill.config import PairConfig
from student.distill.moments import Moments, decoded, full, moments
from student.distill.regions import CLIP, fit, strongest
from student.distill.term_configs import Criterion


@dataclass(frozen=True, kw_only=True)
class TeacherMaps:
    """A teacher's view of B samples that comes from elsewhere than a cache; the objective takes it like a TeacherBatch.

    features: by layer name. heatmap: probabilities (or, as uint8, probability * 255) of all classes.
    """

    features: Mapping[str, Float[Tensor, "B _ _ _"] | Encoded]
    heatmap: Float[Tensor, "B K H W"] | UInt8[Tensor, "B K H W"]
    canvas_mask: Bool[Tensor, "B h w"]


Teaching = TeacherBatch | TeacherMaps
Features = TypeVar("Features", bound=Tensor | Encoded)


def probability(heatmap: Tensor) -> Float[Tensor, "..."]:
    """A heatmap's probabilities from either of its forms."""
    return heatmap if heatmap.is_floating_point() else heatmap.float() / 255


class PairView:
    """A pair in one batch; its moments are formed once, whatever number of terms asks for them.

    student: before its adapter, (B, _, _, _). adapted: behind it. teacher: behind its adapter, as stored or float.
    """

    def __init__(self, student: Tensor, teacher: Tensor | Encoded, adapt: nn.Module) -> None:
        self.student, self.teacher, self.adapt = student, teacher, adapt
        self.adapted = adapt(student)
        self._moments: dict[tuple[Criterion, float], Moments] = {}

    def moments(self, criterion: Criterion, channel_temperature: float = 1.0) -> Moments:
        """The pair's moments under a criterion and a channel attention."""
        key = (criterion, channel_temperature)
        if key not in self._moments:
            self._moments[key] = moments(self.adapted, self.teacher, criterion, channel_temperature)
        return self._moments[key]


class LayerPair(nn.Module):
    """A student's layer, a teacher's layer, and the adapters that make them comparable.

    Raises:
        ConfigError: channels differ and no adapter changes them.
        MismatchError: the grids differ behind the adapters.
    """

    def __init__(self, config: PairConfig, student: FeatureLayer, teacher: FeatureLayer) -> None:
        super().__init__()
        self.config = config
        where = f"distill.pairs, {config.label}"
        self.grid = adapted_grid(config.student_adapter, student.grid, where)
        require_same_grid(self.grid, adapted_grid(config.teacher_adapter, teacher.grid, where), where)
        self.student_channels = student.channels
        self.shapes = (student.channels, *student.grid.shape), (teacher.channels, *teacher.grid.shape)
        converts = changes_channels(config.teacher_adapter)
        self.channels = student.channels if converts else teacher.channels
        if student.channels != self.channels and not changes_channels(config.student_adapter):
            raise ConfigError(
                "channels differ and no adapter changes them",
                where=where,
                got=f"student layer {config.student!r} with {student.channels} channels",
                expected=f"{teacher.channels}, as in the teacher's layer {config.teacher!r}",
                cure="Set student_adapter to 1x1conv, or to a kind that ends in _1x1conv where it also resizes",
            )
        self.student_adapter = build_adapter(config.student_adapter, student.channels, self.channels)
        self.teacher_adapter = build_adapter(config.teacher_adapter, teacher.channels, self.channels)

    def forward(
        self, student: Mapping[str, Float[Tensor, "B _ _ _"]], teacher: Mapping[str, Tensor | Encoded]
    ) -> PairView:
        """Both maps behind their adapters; a teacher without an adapter stays as it is stored.

        Raises:
            MismatchError: a layer is not there, or its shape is not the one that was told at construction.
        """
        ours = self._layer("student", student, self.config.student, self.shapes[0])
        theirs = self._layer("teacher", teacher, self.config.teacher, self.shapes[1])
        plain = isinstance(self.teacher_adapter, nn.Identity)
        return PairView(ours, theirs if plain else self.teacher_adapter(decoded(theirs)), self.student_adapter)

    def _layer(self, who: str, layers: Mapping[str, Features], name: str, shape: tuple[int, int, int]) -> Features:
        found = layers.get(name)
        got = None if found is None else (found.values if isinstance(found, Encoded) else found).shape[1:]
        if found is None or got != shape:
            raise MismatchError(
                f"the {who}'s layer {name!r} is not the one that the objective was built for",
                where=f"distill.pairs, {self.config.label}",
                got=f"only {', '.join(layers)}" if got is None else tuple(got),
                expected=shape,
                cure="Hand over the layers, channels and grids that were given at construction",
            )
        return found


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
    teachers: tuple[Teaching, ...]
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
