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
from student.distill.alignment import require_overlap, same_extent
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig
from student.distill.pairs import LayerPair, PairConfig, PairFeatures
from student.distill.predictions import (
    BatchPredictions,
    TeacherInput,
    TeacherPredictions,
    align_predictions,
    class_order,
)
from student.distill.regions import require_multiple
from student.distill.terms import TERMS
from student.distill.terms.base import HeatmapTerm, PairTerm, TermConfig
from student.distill.terms.fgd import FgdTerm

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

    Raises:
        ConfigError: the student has no such layer, there is no such cache, or channels differ without an adapter.
        MismatchError: the cache has no such layer, grids do not match in metres, or classes differ.
    """

    channel_of_label: Int[Tensor, "classes"]
    pairs: nn.ModuleList
    terms: nn.ModuleList

    def __init__(
        self,
        config: DistillConfig,
        student: Mapping[str, FeatureLayer],
        heatmap_grid: BevGrid,
        tasks: Tasks,
        teachers: Sequence[CacheSpec],
    ) -> None:
        super().__init__()
        self.config, self.heatmap_grid, self.teachers = config, heatmap_grid, tuple(teachers)
        classes = tuple(name for task in tasks for name in task)
        self.orders = tuple(class_order(spec.teacher.classes, classes, f"cache {i}") for i, spec in enumerate(teachers))
        self.task_slices = tuple(slice(*ends) for ends in pairwise(accumulate(map(len, tasks), initial=0)))
        channel_of = [classes.index(name) if name in classes else -1 for name in CLASSES]
        self.register_buffer("channel_of_label", torch.tensor(channel_of), persistent=False)
        _check_caches(config, teachers)
        _check_heatmaps(config, teachers)
        pairs = [_build_pair(pair, student, teachers) for pair in config.pairs]
        _check_cells(config, heatmap_grid, pairs, teachers)
        self.pairs = nn.ModuleList(pairs)
        self.terms = nn.ModuleList(nn.ModuleList(self._build_term(term)) for term in config.terms)

    def forward(
        self,
        student_features: Mapping[str, Float[Tensor, "B _ _ _"]],
        student_heatmap_logits: Float[Tensor, "B K H W"],
        teacher: TeacherInput | Sequence[TeacherInput],
        boxes: tuple[Float[Tensor, "_ 9"], ...],
        labels: tuple[Int[Tensor, "_"], ...],
        epoch: int,
        to_teacher: Sequence[Float[Tensor, "B 4 4"] | None] | None = None,
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

        Raises:
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
            predictions = self._predictions(student_heatmap_logits, aligned, boxes, labels, epoch)
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
    ) -> BatchPredictions:
        padded = pad_sequence(list(labels), batch_first=True).long()
        return BatchPredictions(
            boxes=pad_boxes(boxes),
            channels=self.channel_of_label[padded],
            task_slices=self.task_slices,
            grid=self.heatmap_grid,
            student_logits=logits,
            teachers=teachers,
            teacher_order=self.orders,
            epoch=epoch,
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


def _check_caches(config: DistillConfig, teachers: Sequence[CacheSpec]) -> None:
    caches = {pair.cache for pair in config.pairs}
    caches |= {term.cache for term in config.terms if isinstance(term, HeatmapTerm)}
    if (largest := max(caches, default=0)) >= len(teachers):
        raise ConfigError(
            "a pair or term refers to a cache that does not exist",
            where="distill",
            got=f"cache {largest}",
            expected=f"below {len(teachers)}: that many caches were given, counted from 0",
            cure="Give the training one more cache, or correct `cache`",
        )


def _check_heatmaps(config: DistillConfig, teachers: Sequence[CacheSpec]) -> None:
    """Raise unless every term that compares with a teacher's heatmap has a teacher with heatmaps."""
    for term in config.terms:
        pairs = config.pairs_of(term) if isinstance(term, PairTerm) else ()
        caches = {term.cache} if isinstance(term, HeatmapTerm) else {pair.cache for pair in pairs}
        without = [cache for cache in sorted(caches) if teachers[cache].heatmap == "none"]
        if without and _needs_heatmap(term):
            raise ConfigError(
                "the teacher has no heatmaps, and a term compares with them",
                where=f"distill.terms, {term.label}, cache {without[0]}",
                got=f"{teachers[without[0]].teacher.name}, heatmap: none",
                expected=f"terms on features: {', '.join(_ON_FEATURES)}, and fgd without false_positives",
                cure="Change the term, or dump a teacher with a CenterHead",
            )


def _needs_heatmap(term: TermConfig) -> bool:
    return isinstance(term, HeatmapTerm) or (isinstance(term, FgdTerm) and term.finds_false_positives)


_ON_FEATURES = [kind for kind, (config, _) in TERMS.items() if issubclass(config, PairTerm) and kind != "fgd"]


def _check_cells(
    config: DistillConfig, heatmap_grid: BevGrid, pairs: list[LayerPair], teachers: Sequence[CacheSpec]
) -> None:
    """Raise unless the cells of heatmaps and canvas masks merge or split into those of the student and the pairs."""
    grids = [_aligned_grids(heatmap_grid, spec, f"cache {index}") for index, spec in enumerate(teachers)]
    for heatmap, _ in grids:
        require_multiple(heatmap.shape, heatmap_grid.shape, "heatmaps of teacher and student")
    uses_canvas = any(isinstance(term, FgdTerm) and term.non_empty_weight for term in config.terms)
    for pair in pairs:
        (heatmap, canvas), where = grids[pair.config.cache], f"distill.pairs, {pair.config.label}"
        require_multiple(heatmap.shape, pair.grid.shape, f"{where}: heatmaps")
        if uses_canvas:
            require_multiple(canvas.shape, pair.grid.shape, f"{where}: canvas mask")


def _aligned_grids(heatmap_grid: BevGrid, spec: CacheSpec, where: str) -> tuple[BevGrid, BevGrid]:
    """The grids of heatmap and canvas mask in `TeacherPredictions`, without augmentation."""
    grids = spec.heatmap_grid, spec.canvas_grid
    if all(same_extent(heatmap_grid, grid) for grid in grids):
        return grids
    for grid, what in zip(grids, ("heatmaps", "canvas mask"), strict=True):
        require_overlap(heatmap_grid, grid, f"{what} of {where}")
    return heatmap_grid, heatmap_grid


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
    return LayerPair(pair, student[pair.student], FeatureLayer(channels=layer.channels, grid=layer.grid))
