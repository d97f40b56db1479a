"""Terms times weights: the distillation objective of a training."""

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
from student.distill.alignment import require_common_ground, same_ground
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig, PairConfig
from student.distill.pairs import LayerPair, PairView
from student.distill.predictions import Answers, TeacherAnswer, Teaching, class_order, teacher_answer
from student.distill.regions import require_fit
from student.distill.term_configs import FeatureTerm, FgdTerm, Term
from student.distill.terms import HEATMAP_TERMS, PAIR_TERMS

Tasks = tuple[tuple[str, ...], ...]


class DistillObjective(nn.Module):
    """What a student pays for differing from its teachers.

    Args:
        config: pairs, terms and weights.
        student: the student's layers by name.
        heatmap_grid: of the student's heatmaps.
        tasks: the classes of each of the student's tasks, in the order of its heatmap's channels.
        teachers: what each cache holds; a pair's or term's `cache` is an index into it.

    Raises:
        ConfigError: a layer that the student lacks, a cache that is not there, channels that no adapter cures.
        MismatchError: a layer that the cache lacks, grids that do not match in metres, other classes.
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
        _check_caches(config, heatmap_grid, teachers)
        pairs = [_build_pair(pair, student, teachers) for pair in config.pairs]
        _check_cells(config, heatmap_grid, pairs, teachers)
        self.pairs = nn.ModuleList(pairs)
        self.terms = nn.ModuleList(nn.ModuleList(self._on_pairs(term)) for term in config.terms)

    def forward(
        self,
        student_features: Mapping[str, Float[Tensor, "B _ _ _"]],
        student_heatmap_logits: Float[Tensor, "B K H W"],
        teacher: Teaching | Sequence[Teaching],
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
            to_teacher: for each cache, the student's (augmented) BEV frame -> the teacher's, in metres; None where both
                see the same, and left out where all do. Cells that a teacher does not know leave its terms.

        Raises:
            MismatchError: another number of teachers, a layer that is not there, features of another shape than was
                told at construction, or a teacher of another frame without its matrix.
        """
        teachers = (teacher,) if isinstance(teacher, Teaching) else tuple(teacher)
        matrices = (None,) * len(teachers) if to_teacher is None else tuple(to_teacher)
        if not len(teachers) == len(matrices) == len(self.teachers):
            raise MismatchError(
                "the objective was built for another number of teachers",
                got=f"{len(teachers)}, with {len(matrices)} matrices",
                expected=len(self.teachers),
                cure="Give one batch, and one matrix or None, for each cache, in their order",
            )
        views = {
            pair.label: layers(student_features, teachers[pair.cache].features, matrices[pair.cache])
            for pair, layers in zip(self.config.pairs, self.pairs, strict=True)
            if epoch >= self.config.multi_scale_epoch or not pair.student.startswith("backbone")
        }
        # The adapters may run in half precision; sums over half a million elements may not.
        with torch.autocast(student_heatmap_logits.device.type, enabled=False):
            told = zip(teachers, self.teachers, matrices, strict=True)
            heard = tuple(teacher_answer(maps, spec, self.heatmap_grid, matrix) for maps, spec, matrix in told)
            answers = self._answers(student_heatmap_logits, heard, boxes, labels, epoch)
            return dict(self._losses(views, answers))

    def detection_weight(self, epoch: int) -> float:
        """What the student's own detection losses are to be multiplied with: 0 before `two_stage_epoch`, then 1."""
        return float(epoch >= self.config.two_stage_epoch)

    def _on_pairs(self, term: Term) -> Iterator[nn.Module]:
        if isinstance(term, FeatureTerm):
            for index, pair in enumerate(self.config.pairs_of(term)):
                yield PAIR_TERMS[term.kind](term, index, self.pairs[self.config.pairs.index(pair)])

    def _answers(
        self,
        logits: Float[Tensor, "B K H W"],
        teachers: tuple[TeacherAnswer, ...],
        boxes: tuple[Float[Tensor, "_ 9"], ...],
        labels: tuple[Int[Tensor, "_"], ...],
        epoch: int,
    ) -> Answers:
        padded = pad_sequence(list(labels), batch_first=True).long()
        return Answers(
            boxes=pad_boxes(boxes),
            channels=self.channel_of_label[padded],
            task_slices=self.task_slices,
            grid=self.heatmap_grid,
            student_logits=logits,
            teachers=teachers,
            teacher_order=self.orders,
            epoch=epoch,
        )

    def _losses(self, views: dict[str, PairView], answers: Answers) -> Iterator[tuple[str, Float[Tensor, ""]]]:
        for term, on_pairs in zip(self.config.terms, self.terms, strict=True):
            name = f"distill/{term.name or term.kind}"
            if not isinstance(term, FeatureTerm):
                for part, value in HEATMAP_TERMS[term.kind](term, answers).items():
                    yield f"{name}/{part}", value
                continue
            for pair, module in zip(self.config.pairs_of(term), on_pairs.children(), strict=True):
                if pair.label in views:
                    for part, value in module(views[pair.label], answers).items():
                        yield f"{name}/{pair.label}/{part}", value


def _check_caches(config: DistillConfig, heatmap_grid: BevGrid, teachers: Sequence[CacheSpec]) -> None:
    asked = {item.cache for item in (*config.pairs, *config.terms) if not isinstance(item, FeatureTerm)}
    if max(asked, default=0) >= len(teachers):
        raise ConfigError(
            "a pair or term asks for a cache that is not there",
            where="distill",
            got=f"cache {max(asked)}",
            expected=f"below {len(teachers)}: that many caches were given, counted from 0",
            cure="Give the training one more cache, or correct `cache`",
        )


def _check_cells(
    config: DistillConfig, heatmap_grid: BevGrid, pairs: list[LayerPair], teachers: Sequence[CacheSpec]
) -> None:
    """Warped maps lie on the student's heatmap grid; the others have to fit it, and all have to fit the pairs."""
    laid = [_laid_grids(heatmap_grid, spec, f"cache {index}") for index, spec in enumerate(teachers)]
    for heatmap, _ in laid:
        require_fit(heatmap.shape, heatmap_grid.shape, "heatmaps of teacher and student")
    canvas_counts = any(isinstance(term, FgdTerm) and term.non_empty_weight for term in config.terms)
    for pair in pairs:
        (heatmap, canvas), where = laid[pair.config.cache], f"distill.pairs, {pair.config.label}"
        require_fit(heatmap.shape, pair.grid.shape, f"{where}: heatmaps")
        if canvas_counts:
            require_fit(canvas.shape, pair.grid.shape, f"{where}: canvas mask")


def _laid_grids(heatmap_grid: BevGrid, spec: CacheSpec, where: str) -> tuple[BevGrid, BevGrid]:
    """The grids of heatmap and canvas mask as the terms see them, without augmentation."""
    if same_ground(heatmap_grid, spec.heatmap_grid) and same_ground(heatmap_grid, spec.canvas_grid):
        return spec.heatmap_grid, spec.canvas_grid
    require_common_ground(heatmap_grid, spec.heatmap_grid, f"heatmaps of {where}")
    require_common_ground(heatmap_grid, spec.canvas_grid, f"canvas mask of {where}")
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
