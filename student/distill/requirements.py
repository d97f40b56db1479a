"""What an objective needs of its teachers and batches: caches, heatmaps, matching cells, head maps, heads, labels."""

from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec, variance_layer
from student.distill.alignment import require_overlap, same_extent
from student.distill.config import DistillConfig, ForegroundConfig
from student.distill.head_maps import HEAD_MAPS
from student.distill.pairs import LayerPair, PairConfig
from student.distill.regions import require_multiple
from student.distill.terms import TERMS
from student.distill.terms.base import HeatmapTerm, PairTerm, TermConfig
from student.distill.terms.cross_head import CrossHeadTerm
from student.distill.terms.fgd import FgdTerm


def check_caches(config: DistillConfig, teachers: Sequence[CacheSpec]) -> None:
    """Raise ConfigError unless every pair and term refers to a cache that there is."""
    caches = {pair.cache for pair in config.pairs}
    caches |= {term.cache for term in config.terms if isinstance(term, HeatmapTerm)} | config.boxed_caches
    if (largest := max(caches, default=0)) >= len(teachers):
        raise ConfigError(
            "a pair or term refers to a cache that does not exist",
            where="distill",
            got=f"cache {largest}",
            expected=f"below {len(teachers)}: that many caches were given, counted from 0",
            cure="Give the training one more cache, or correct `cache`",
        )


def check_heatmaps(config: DistillConfig, teachers: Sequence[CacheSpec]) -> None:
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
    crosses = isinstance(term, CrossHeadTerm)
    return isinstance(term, HeatmapTerm) or crosses or (isinstance(term, FgdTerm) and term.finds_false_positives)


_ON_FEATURES = [
    kind
    for kind, (config, _) in TERMS.items()
    if issubclass(config, PairTerm) and not issubclass(config, FgdTerm | CrossHeadTerm)
]


def check_cells(
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
    require_crossed_grids(config, heatmap_grid, {pair.config.label: pair.grid for pair in pairs})


def _aligned_grids(heatmap_grid: BevGrid, spec: CacheSpec, where: str) -> tuple[BevGrid, BevGrid]:
    """The grids of heatmap and canvas mask in `TeacherPredictions`, without augmentation."""
    grids = spec.heatmap_grid, spec.canvas_grid
    if all(same_extent(heatmap_grid, grid) for grid in grids):
        return grids
    for grid, what in zip(grids, ("heatmaps", "canvas mask"), strict=True):
        require_overlap(heatmap_grid, grid, f"{what} of {where}")
    return heatmap_grid, heatmap_grid


def check_boxes(config: DistillConfig, teachers: Sequence[CacheSpec]) -> None:
    """Raise unless the teachers whose boxes are read keep the maps of a centre head, with a row for each y.

    Raises:
        ConfigError: a store has no such maps.
        MismatchError: its maps have a row for each x.
    """
    for cache in sorted(config.boxed_caches):
        spec = teachers[cache]
        if spec.heatmap == "none" or {n: spec.head_maps.get(n) for n in HEAD_MAPS} != HEAD_MAPS:
            raise ConfigError(
                "a term or `foreground` reads the teacher's boxes, and the store keeps no maps of a centre head",
                where=f"distill, cache {cache}",
                got=", ".join(f"{name} ({width})" for name, width in spec.head_maps.items()) or "no head maps",
                expected=", ".join(f"{name} ({width})" for name, width in HEAD_MAPS.items()),
                cure="Dump a CenterPoint teacher with head_maps: true, or change the term or distill.foreground",
            )
        if spec.heatmap_grid.axes != "yx":
            raise MismatchError(
                "boxes cannot be read from head maps with a row for each x",
                where=f"distill, cache {cache}",
                got=spec.heatmap_grid.axes,
                expected="yx",
                cure="Distil features and heatmaps of this teacher alone",
            )


def check_heads(config: DistillConfig, heads: Container[int]) -> None:
    """Raise ConfigError unless there is a head for each teacher whose head a term runs."""
    for cache in sorted(config.crossed_caches):
        if cache not in heads:
            raise ConfigError(
                "cross_head runs the teacher's head, and the objective has none",
                where=f"distill, cache {cache}",
                cure="Pass `teacher_heads` to the objective: student.models.teacher_head.build_teacher_head(cache)",
            )


def require_crossed_grids(config: DistillConfig, heatmap_grid: BevGrid, grids: Mapping[str, BevGrid]) -> None:
    """Raise ConfigError unless the pairs of `cross_head` have the heatmap's cells."""
    for term in config.terms:
        pairs = config.pairs_of(term) if isinstance(term, CrossHeadTerm) else ()
        for pair in pairs:
            if grids[pair.label].shape != heatmap_grid.shape:
                raise ConfigError(
                    "cross_head compares boxes in the cells of the student's heatmap",
                    where=f"distill.pairs, {pair.label}",
                    got=f"{grids[pair.label].shape} cells",
                    expected=f"{heatmap_grid.shape} cells",
                    cure="Choose an adapter that keeps the cells of the student's layer `head`",
                )


def require_head_maps(maps: Mapping[str, Tensor], where: str) -> None:
    """Raise MismatchError unless a batch holds the maps of a centre head."""
    if not HEAD_MAPS.keys() <= maps.keys():
        raise MismatchError(
            "the teacher's boxes are read, and its batch lacks head maps",
            where=where,
            got=", ".join(maps) or "no maps",
            expected=", ".join(HEAD_MAPS),
            cure="Read the batch with head_maps=True",
        )


def require_labels(config: ForegroundConfig, labelled: Sequence[bool]) -> None:
    """Raise ConfigError where a sample has no labels and its regions would be those of the labels' boxes."""
    if config.source == "boxes" and not all(labelled):
        raise ConfigError(
            "a sample without labels has no boxes to find regions with",
            where="distill.foreground",
            got=f"boxes, with {sum(not known for known in labelled)} of {len(labelled)} samples without labels",
            expected="teacher or boxes_or_teacher",
            cure="Change distill.foreground, or train on labelled frames alone",
        )


def require_variance(pair: PairConfig, spec: CacheSpec) -> None:
    """Raise ConfigError unless a committee's store keeps the variance of a pair's layer."""
    name = variance_layer(pair.teacher)
    if name not in {layer.name for layer in spec.layers}:
        raise ConfigError(
            "cells are weighted by the teachers' variance, and the store keeps none",
            where=f"distill.pairs, {pair.label}",
            got=", ".join(layer.name for layer in spec.layers),
            expected=name,
            cure="Average several teachers' stores with `cli derive A B OUT --mean`, or leave weight_by out",
        )
