"""Terms times weights: the distillation objective of a training."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cache.errors import ConfigError, MismatchError
from cache.grid import BevGrid
from cache.spec import CLASSES, CacheSpec
from student.distill.adapters import FeatureLayer, require_same_range
from student.distill.boxes import pad_boxes
from student.distill.config import DistillConfig, PairConfig
from student.distill.regions import require_fit
from student.distill.term_configs import FeatureTerm, FgdTerm, Term
from student.distill.terms import HEATMAP_TERMS, PAIR_TERMS
from student.distill.views import Answers, LayerPair, PairView, Teaching, class_order

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
        self.config, self.heatmap_grid = config, heatmap_grid
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
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms by name: "distill/<term>/<pair>/<part>", or "distill/<term>/<part>" for heatmaps.

        Args:
            student_features: by layer name, before any adapter.
            student_heatmap_logits: over all classes, in the order of `tasks`.
            teacher: the cached samples of the same frames, or one such batch for each cache.
            boxes: x, y, z (bottom), dx, dy, dz in metres, yaw in radians, vx, vy in the BEV frame.
            labels: index into cache.spec.CLASSES.
            epoch: counts from 0.

        Raises:
            MismatchError: another number of teachers, a layer that is not there, or features of another shape than
                was told at construction.
        """
        teachers = (teacher,) if isinstance(teacher, Teaching) else tuple(teacher)
        if len(teachers) != len(self.orders):
            raise MismatchError(
                "the objective was built for another number of teachers",
                got=len(teachers),
                expected=len(self.orders),
                cure="Give one batch for each cache, in their order",
            )
        views = {
            pair.label: layers(student_features, teachers[pair.cache].features)
            for pair, layers in zip(self.config.pairs, self.pairs, strict=True)
            if epoch >= self.config.multi_scale_epoch or not pair.student.startswith("backbone")
        }
        # The adapters may run in half precision; sums over half a million elements may not.
        with torch.autocast(student_heatmap_logits.device.type, enabled=False):
            answers = self._answers(student_heatmap_logits, teachers, boxes, labels, epoch)
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
        teachers: tuple[Teaching, ...],
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
    for index, spec in enumerate(teachers):
        require_same_range(heatmap_grid, spec.heatmap_grid, f"heatmaps of cache {index}")
        require_same_range(heatmap_grid, spec.canvas_grid, f"canvas mask of cache {index}")


def _check_cells(
    config: DistillConfig, heatmap_grid: BevGrid, pairs: list[LayerPair], teachers: Sequence[CacheSpec]
) -> None:
    for spec in teachers:
        require_fit(spec.heatmap_grid.shape, heatmap_grid.shape, "heatmaps of teacher and student")
    canvas_counts = any(isinstance(term, FgdTerm) and term.non_empty_weight for term in config.terms)
    for pair in pairs:
        spec, where = teachers[pair.config.cache], f"distill.pairs, {pair.config.label}"
        require_fit(spec.heatmap_grid.shape, pair.grid.shape, f"{where}: heatmaps")
        if canvas_counts:
            require_fit(spec.canvas_grid.shape, pair.grid.shape, f"{where}: canvas mask")


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
