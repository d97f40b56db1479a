"""The cached (and warped) teacher against the live one on the same augmented points."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache.errors import NotCachedError
from cache.geometry.views import (
    PUBLIC_AUGMENT,
    REFLECTIONS,
    bev_matrix,
    nearest_view,
    transform_boxes,
    transform_points,
)
from cache.nuscenes.frames import Frame, Frames
from cache.nuscenes.points import load_points
from cache.spec import CacheSpec, LayerSpec
from cache.store.codec import Encoded
from cache.store.reader import TeacherBatch, TeacherCache
from cache.teacher.base import Teacher, TeacherOutput
from student.distill.boxes import pad_boxes
from student.distill.warp import to_teacher, warp
from student.evaluation.evaluate import Metrics, evaluate
from student.evaluation.teacher_boxes import require_lidar_rows
from student.fidelity.closeness import Closeness, Motion, closeness, regions_of
from student.fidelity.parts import Loss, StandIn, TeacherHead
from student.models.decoding import Detections

Matrix = Float[np.ndarray, "4 4"]
Source = Literal["still", "moved", "drawn", "replayed"]
"""What a matrix does: nothing, move by MOVED_M, what is drawn afresh, or what a drawn view of the store does."""
LIVE = "live"
MOVED_M = 0.05
"""A way so short that all it changes is how points fall into the teacher's cells: its own unrest, below which no warp
can come."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to store views, judged by the views that it would have: indices into the store's."""

    name: str
    views: tuple[int, ...]
    source: Source


def choices_of(spec: CacheSpec) -> tuple[Choice, ...]:
    """The ways that a store's views allow to be judged.

    Raises:
        NotCachedError: it holds neither the canonical view nor drawn ones.
    """
    index = {name: place for place, name in enumerate(spec.views)}
    drawn = tuple(place for name, place in index.items() if name not in REFLECTIONS)
    asked: tuple[tuple[str, tuple[str, ...], Source], ...] = (
        ("no augmentation", ("canonical",), "still"),
        (f"moved by {MOVED_M} m", ("canonical",), "moved"),
        ("canonical", ("canonical",), "drawn"),
        ("2 reflections", ("canonical", "flip_y"), "drawn"),
        ("4 reflections", tuple(REFLECTIONS), "drawn"),
    )
    choices = [
        Choice(name=name, views=tuple(index[view] for view in views), source=source)
        for name, views, source in asked
        if all(view in index for view in views)
    ]
    choices += [Choice(name="drawn views, replayed", views=drawn, source="replayed")] if drawn else []
    if not choices:
        raise NotCachedError(
            "the store's views cannot be compared",
            got=", ".join(spec.views),
            expected="canonical or drawn views",
            cure="Dump the teacher with views.canonical",
        )
    return tuple(choices)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One sample under one matrix, by one choice.

    layers: by layer and region, the cached features against the live ones, over the cells that the cache knows.
    """

    choice: str
    token: str
    view: str
    motion: Motion
    layers: dict[str, dict[str, Closeness]]
    loss: Loss


@dataclass(frozen=True, kw_only=True)
class HeadMetrics:
    """The teacher's head on all frames' features: `choice`'s, or live ones, with the matrices of a source."""

    choice: str
    source: Source
    number: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """All that was compared."""

    store: Path
    teacher: str
    frames: int
    comparisons: tuple[Comparison, ...]
    head: tuple[HeadMetrics, ...]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A frame under a matrix: the number of its draw, and the choices that are judged by it."""

    matrix: Matrix
    number: int
    source: Source
    choices: tuple[Choice, ...]


class FidelityStudy:
    """Store, live teacher and what judges both.

    Raises:
        MismatchError: the store is another teacher's, or not in the LiDAR frame, a row for each y.
        NotCachedError: the store has no views that can be compared.
    """

    def __init__(self, cache: TeacherCache, teacher: Teacher, draws: int = 2, seed: int = 0) -> None:
        cache.spec.require({"teacher": teacher.identity.model_dump(mode="json")}, cache.path)
        require_lidar_rows(cache.spec.heatmap_grid, cache.path)
        self.cache, self.teacher, self.draws, self.seed = cache, teacher, draws, seed
        self.choices = choices_of(cache.spec)
        self.augment = PUBLIC_AUGMENT if cache.spec.drawn is None else cache.spec.drawn.augment
        self.head, self.stand_in = TeacherHead(cache), StandIn(cache.spec)

    def run(self, frames: Frames, out: Path, progress: Callable[[int, int], None]) -> FidelityReport:
        """Compare on all frames of a split; the devkit's evaluations go to `out`.

        Raises:
            NotCachedError: a frame was not dumped.
            DataError: the split has no annotations, or a file is missing.
        """
        comparisons: list[Comparison] = []
        found: dict[tuple[str, Source, int], list[tuple[str, Detections]]] = defaultdict(list)
        for position, frame in enumerate(frames):
            points = load_points(frame, self.teacher.points)
            for sight in self._sights(frame, position):
                live = self.teacher([self.teacher.prepare(transform_points(points, sight.matrix))])
                self.head.require_same(live)
                seen = self.head.detect(live.layers["head"], sight.matrix)
                found[LIVE, sight.source, sight.number].append((frame.token, seen))
                for choice in sight.choices:
                    comparison, seen = self._compare(frame, choice, sight.matrix, live)
                    comparisons.append(comparison)
                    found[choice.name, sight.source, sight.number].append((frame.token, seen))
            progress(position + 1, len(frames))
        return FidelityReport(
            store=self.cache.path,
            teacher=self.teacher.identity.name,
            frames=len(frames),
            comparisons=tuple(comparisons),
            head=tuple(_evaluated(found, frames, out)),
        )

    def _sights(self, frame: Frame, position: int) -> Iterator[Sight]:
        still = np.eye(4, dtype=np.float32)
        moved = still.copy()
        moved[:2, 3] = MOVED_M
        matrices: dict[Source, Sequence[Matrix]] = {
            "still": [still],
            "moved": [moved],
            "drawn": [
                bev_matrix(self.augment, np.random.default_rng((self.seed, position, draw))).astype(np.float32)
                for draw in range(self.draws)
            ],
            "replayed": [
                matrix
                for name, matrix in zip(self.cache.spec.views, self.cache.view_matrices([frame.token])[0], strict=True)
                if name not in REFLECTIONS
            ][: self.draws],
        }
        for source, found in matrices.items():
            choices = tuple(choice for choice in self.choices if choice.source == source)
            for number, matrix in enumerate(found if choices else ()):
                yield Sight(matrix=matrix, number=number, source=source, choices=choices)

    def _compare(
        self, frame: Frame, choice: Choice, matrix: Matrix, live: TeacherOutput
    ) -> tuple[Comparison, Detections]:
        stored = self.cache.view_matrices([frame.token])[:, list(choice.views)]
        view = choice.views[nearest_view(matrix[None], stored)[0]]
        cached = self.cache.read((frame.token,), views=(view,)).to(live.heatmap.device)
        boxes = torch.from_numpy(transform_boxes(frame.boxes, matrix)).to(live.heatmap.device)
        sides = torch.from_numpy(matrix[None]), torch.from_numpy(frame.lidar_to_ego[None])
        grid = self.cache.spec.heatmap_grid
        way = to_teacher(grid, grid, cached.view_matrix, *sides)
        warped = {layer.name: _warped(cached, layer, way) for layer in self.cache.spec.layers}
        comparison = Comparison(
            choice=choice.name,
            token=frame.token,
            view=self.cache.spec.views[view],
            motion=Motion.of(matrix),
            layers={
                layer.name: _by_region(*warped[layer.name], live, boxes, layer) for layer in self.cache.spec.layers
            },
            loss=self.stand_in.loss(cached, live, boxes, torch.from_numpy(frame.labels), way),
        )
        return comparison, self.head.detect(warped["head"][0], matrix)


def _warped(
    cached: TeacherBatch, layer: LayerSpec, way: Float[Tensor, "1 4 4"] | None
) -> tuple[Float[Tensor, "1 C H W"], Bool[Tensor, "1 H W"]]:
    """Features of a layer on its own grid, as a student under the matrix sees them, and the cells that are known."""
    features: Encoded = cached.features[layer.name]
    if way is None:
        return features.decode(), torch.ones_like(features.values[:, 0], dtype=torch.bool)
    warped = warp(features, layer.grid, layer.grid, way)
    return warped.features.decode(), warped.inside


def _by_region(
    found: Float[Tensor, "1 C H W"],
    inside: Bool[Tensor, "1 H W"],
    live: TeacherOutput,
    boxes: Float[Tensor, "M 9"],
    layer: LayerSpec,
) -> dict[str, Closeness]:
    regions = regions_of(live.heatmap, pad_boxes((boxes,)), layer.grid)
    return {name: closeness(found, live.layers[layer.name], cells & inside) for name, cells in regions.items()}


def _evaluated(
    found: dict[tuple[str, Source, int], list[tuple[str, Detections]]], frames: Frames, out: Path
) -> Iterator[HeadMetrics]:
    for (choice, source, number), detections in found.items():
        folder = out / "evaluations" / f"{choice} {source} {number}".replace(",", "").replace(" ", "-")
        metrics = evaluate(detections, frames, folder, "lidar")
        yield HeadMetrics(choice=choice, source=source, number=number, metrics=metrics)
