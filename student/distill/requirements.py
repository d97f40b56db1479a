"""What terms on boxes need of teachers and batches: head maps, heads, matching cells, labels."""

from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec, variance_layer
from student.distill.config import DistillConfig, ForegroundConfig
from student.distill.head_maps import HEAD_MAPS
from student.distill.pairs import PairConfig
from student.distill.terms.cross_head import CrossHeadTerm


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
