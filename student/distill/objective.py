"""The distillation objective of a training: its pairs of layers and its weighted terms."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, CacheSpec
from student.distill.adapters import FeatureLayer
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig
from student.distill.head_maps import Maps, Objects, TeacherBoxes
from student.distill.pairs import LayerPair, PairConfig, PairFeatures
from student.distill.predictions import (
    BatchPredictions,
    StudentDepth,
    TeacherInput,
    TeacherPredictions,
    align_predictions,
    as_probability,
    class_order,
    in_order,
)
from student.distill.requirements import (
    check_boxes,
    check_caches,
    check_cells,
    check_heads,
    check_heatmaps,
    require_head_maps,
    require_labels,
    require_variance,
)
from student.distill.terms import TERMS
from student.distill.terms.base import PairTerm, TermConfig

Tasks = tuple[tuple[str, ...], ...]

PREFIX = "distill/"
"""Of the names of all its losses."""


class DistillObjective(nn.Module):
    """Weighted losses of a student's features and heatmaps against its teachers'.

    Args:
        config: pairs, terms and weights.
        student: the student's layers by name.
        heatmap_grid: grid of the student's heatmaps.
        tasks: the classes of each of the student's tasks, in the order of its heatmap's channels.
        teachers: the spec of each cache; a pair's or term's `cache` is an index into it.
        teacher_heads: for `cross_head`, a teacher's head by its cache's index: features -> heatmap logits of its
            classes, and its other maps by name, (B, T, D, H, W). Their weights are frozen.

    Raises:
        ConfigError: the student has no such layer, there is no such cache, or channels differ without an adapter; or a
            term needs a head or head maps that the teacher lacks.
        MismatchError: the cache has no such layer, grids do not match in metres, or classes differ.
    """

    channel_of_label: Int[Tensor, "classes"]
    task_of_channel: Int[Tensor, "K"]
    teacher_tasks: Int[Tensor, "teachers K"]
    pairs: nn.ModuleList
    terms: nn.ModuleList

    def __init__(
        self,
        config: DistillConfig,
        student: Mapping[str, FeatureLayer],
        heatmap_grid: BevGrid,
        tasks: Tasks,
        teachers: Sequence[CacheSpec],
        teacher_heads: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.heatmap_grid, self.teachers = config, heatmap_grid, tuple(teachers)
        classes = tuple(name for task in tasks for name in task)
        self.orders = tuple(class_order(spec.teacher.classes, classes, f"cache {i}") for i, spec in enumerate(teachers))
        self.task_slices = tuple(slice(*ends) for ends in pairwise(accumulate(map(len, tasks), initial=0)))
        channel_of = [classes.index(name) if name in classes else -1 for name in CLASSES]
        self.register_buffer("channel_of_label", torch.tensor(channel_of), persistent=False)
        self.register_buffer("task_of_channel", _tasks_of(classes, tasks), persistent=False)
        check_caches(config, teachers)
        of_teachers = [_tasks_of(classes, spec.teacher.tasks) for spec in teachers]
        self.register_buffer("teacher_tasks", torch.stack(of_teachers), persistent=False)
        check_heatmaps(config, teachers)
        check_boxes(config, teachers)
        check_heads(config, teacher_heads or {})
        # Each batch norm of a frozen head keeps the teacher's statistics: see `train`.
        heads = {str(cache): (teacher_heads or {})[cache].requires_grad_(False) for cache in config.crossed_caches}
        self.teacher_heads = nn.ModuleDict(heads)
        pairs = [_build_pair(pair, student, teachers) for pair in config.pairs]
        check_cells(config, heatmap_grid, pairs, teachers)
        self.pairs = nn.ModuleList(pairs)
        self.terms = nn.ModuleList(nn.ModuleList(self._build_term(term)) for term in config.terms)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DistillObjective":
        """Set adapters to training or evaluation; the teachers' heads stay in evaluation."""
        super().train(mode)
        self.teacher_heads.eval()
        return self

    def forward(
        self,
        student_features: Mapping[str, Float[Tensor, "B _ _ _"]],
        student_heatmap_logits: Float[Tensor, "B K H W"],
        teacher: TeacherInput | Sequence[TeacherInput],
        boxes: tuple[Float[Tensor, "_ 9"], ...],
        labels: tuple[Int[Tensor, "_"], ...],
        epoch: int,
        to_teacher: Sequence[Float[Tensor, "B 4 4"] | None] | None = None,
        student_maps: Maps | None = None,
        depth: StudentDepth | None = None,
        labelled: Sequence[bool] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms by name: "distill/<term>/<pair>/<part>", or "distill/<term>/<part>" for heatmaps.

        Args:
            student_features: by layer name, before any adapter.
            student_heatmap_logits: over all classes, in the order of `tasks`.
            teacher: the cached samples of the same frames, or one such batch for each cache.
            boxes: x, y, z (bottom), dx, dy, dz in metres, yaw in radians, vx, vy in the BEV frame.
            labels: index into cache.spec.CLASSES.
            epoch: counts from 0.
            to_teacher: for each cache, the student's (augmented) BEV frame -> the teacher's, in metres; None where they
                are the same (default: all). Cells outside a teacher's range are excluded from its terms.
            student_maps: the other maps of the student's head by name, for terms that compare boxes.
            depth: for terms on depth.
            labelled: whether each sample has labels (default: all have); on the others `boxes` says nothing.

        Raises:
            ConfigError: a sample has no labels, and the terms' foreground is that of the labels' boxes.
            MismatchError: another number of teachers, a layer that is missing or of another shape than at construction,
                or a teacher of another frame without its matrix.
        """
        teachers = (teacher,) if isinstance(teacher, TeacherInput) else tuple(teacher)
        matrices = (None,) * len(teachers) if to_teacher is None else tuple(to_teacher)
        if not len(teachers) == len(matrices) == len(self.teachers):
            raise MismatchError(
                "the objective was built for another number of teachers",
                got=f"{len(teachers)}, with {len(matrices)} matrices",
                expected=len(self.teachers),
                cure="Pass one batch, and one matrix or None, for each cache, in their order",
            )
        features = {
            pair.label: layers(student_features, teachers[pair.cache].features, matrices[pair.cache])
            for pair, layers in zip(self.config.pairs, self.pairs, strict=True)
            if epoch >= self.config.multi_scale_epoch or not pair.student.startswith("backbone")
        }
        # The adapters may run in half precision; sums over half a million elements may not.
        with torch.autocast(student_heatmap_logits.device.type, enabled=False):
            inputs = zip(teachers, self.teachers, matrices, strict=True)
            aligned = tuple(align_predictions(maps, spec, self.heatmap_grid, matrix) for maps, spec, matrix in inputs)
            teacher_boxes = {
                cache: self._teacher_boxes(cache, teachers[cache], matrices[cache])
                for cache in self.config.boxed_caches
            }
            predictions = self._predictions(
                student_heatmap_logits, aligned, boxes, labels, epoch, teacher_boxes, labelled, student_maps, depth
            )
            return dict(self._losses(features, predictions))

    def detection_weight(self, epoch: int) -> float:
        """Factor on the student's own detection losses: 0 before `two_stage_epoch`, then 1."""
        return float(epoch >= self.config.two_stage_epoch)

    def _build_term(self, term: TermConfig) -> Iterator[nn.Module]:
        _, build = TERMS[term.kind]
        if isinstance(term, PairTerm):
            for index, pair in enumerate(self.config.pairs_of(term)):
                yield build(term, index, self.pairs[self.config.pairs.index(pair)])
        else:
            yield build(term)

    def _predictions(
        self,
        logits: Float[Tensor, "B K H W"],
        teachers: tuple[TeacherPredictions, ...],
        boxes: tuple[Float[Tensor, "_ 9"], ...],
        labels: tuple[Int[Tensor, "_"], ...],
        epoch: int,
        teacher_boxes: Mapping[int, TeacherBoxes] | None = None,
        labelled: Sequence[bool] | None = None,
        student_maps: Maps | None = None,
        depth: StudentDepth | None = None,
    ) -> BatchPredictions:
        objects = self._objects(boxes, labels, teacher_boxes or {}, labelled)
        return BatchPredictions(
            boxes=objects.boxes,
            channels=objects.channels,
            task_slices=self.task_slices,
            grid=self.heatmap_grid,
            student_logits=logits,
            teachers=teachers,
            teacher_order=self.orders,
            epoch=epoch,
            task_of_channel=self.task_of_channel,
            student_maps=student_maps,
            teacher_boxes=teacher_boxes or {},
            teacher_heads={int(cache): head for cache, head in self.teacher_heads.items()},
            depth=depth,
        )

    def _objects(
        self,
        boxes: tuple[Float[Tensor, "_ 9"], ...],
        labels: tuple[Int[Tensor, "_"], ...],
        teacher_boxes: Mapping[int, TeacherBoxes],
        labelled: Sequence[bool] | None,
    ) -> Objects:
        """The objects of all terms, by `foreground`."""
        config, known = self.config.foreground, tuple(labelled or (True,) * len(boxes))
        require_labels(config, known)
        if config.source == "teacher" or not all(known):
            of_teacher, _ = teacher_boxes[config.cache].peaks(config.peaks, config.threshold)
        if config.source == "teacher":
            return of_teacher
        padded = self.channel_of_label[pad_sequence(list(labels), batch_first=True).long()]
        of_labels = Objects(boxes=pad_boxes(boxes), channels=padded, scores=torch.ones_like(padded).float())
        if all(known):
            return of_labels
        return of_labels.of_samples(known) + of_teacher.of_samples(tuple(not here for here in known))

    def _teacher_boxes(self, cache: int, maps: TeacherInput, to_teacher: Tensor | None) -> TeacherBoxes:
        spec = self.teachers[cache]
        require_head_maps(maps.head_maps, f"cache {cache}")
        return TeacherBoxes(
            heatmap=as_probability(in_order(maps.heatmap, self.orders[cache])),
            maps=maps.head_maps,
            task_of_channel=self.teacher_tasks[cache],
            grid=spec.heatmap_grid,
            student=self.heatmap_grid,
            to_teacher=to_teacher,
            log_dimensions=spec.teacher.decoding.log_dimensions,
        )

    def _losses(
        self, features: dict[str, PairFeatures], predictions: BatchPredictions
    ) -> Iterator[tuple[str, Float[Tensor, ""]]]:
        for term, modules in zip(self.config.terms, self.terms, strict=True):
            pairs = self.config.pairs_of(term) if isinstance(term, PairTerm) else (None,)
            for pair, module in zip(pairs, modules.children(), strict=True):
                if pair is None:
                    name, losses = term.label, module(predictions)
                elif pair.label in features:
                    name, losses = f"{term.label}/{pair.label}", module(features[pair.label], predictions)
                else:  # before multi_scale_epoch
                    continue
                for part, value in losses.items():
                    yield f"{PREFIX}{name}/{part}", value


def _tasks_of(classes: tuple[str, ...], tasks: Tasks) -> Int[Tensor, "K"]:
    """The task of each class."""
    return torch.tensor([next(i for i, task in enumerate(tasks) if name in task) for name in classes], dtype=torch.long)


def _build_pair(pair: PairConfig, student: Mapping[str, FeatureLayer], teachers: Sequence[CacheSpec]) -> LayerPair:
    if pair.student not in student:
        raise ConfigError(
            "the student has no such layer",
            where=f"distill.pairs, {pair.label}",
            got=pair.student,
            expected=f"one of {', '.join(student)}",
            cure="Correct the pair's `student`",
        )
    layer = teachers[pair.cache].layer(pair.teacher)
    if pair.weight_by == "variance":
        require_variance(pair, teachers[pair.cache])
    return LayerPair(pair, student[pair.student], FeatureLayer(channels=layer.channels, grid=layer.grid))
