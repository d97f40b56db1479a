"""The fidelity study: the cached (and warped) teacher against the live one on the same augmented points."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache.geometry.views import PUBLIC_AUGMENT, nearest_view, transform_boxes
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.spec import LayerSpec
from cache.store.codec import Encoded
from cache.store.reader import TeacherBatch, TeacherCache
from cache.teacher.base import Teacher, TeacherInput, TeacherOutput
from cache.teacher.plugins import teacher_points
from student.distill.boxes import pad_boxes
from student.distill.warp import to_teacher, warp
from student.evaluation.evaluate import Metrics, evaluate, require_devkit
from student.evaluation.teacher_boxes import require_heatmap, require_lidar_grid
from student.fidelity.similarity import Similarity, similarity, split_regions
from student.fidelity.surrogate import LossComparison, SurrogateStudent
from student.fidelity.teacher_head import TeacherHead
from student.fidelity.view_sets import (
    BevTransform,
    Matrix,
    MatrixSource,
    Trial,
    ViewSet,
    comparable_view_sets,
    make_trials,
)
from student.models.decoding import Detections

LIVE = "live"
"""Name of the live teacher beside the view sets."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One sample under one matrix, with one view set.

    layers: by layer and region, the cached features against the live ones, over the valid cells of the cache.
    """

    view_set: str
    token: str
    view: str
    transform: BevTransform
    layers: dict[str, dict[str, Similarity]]
    loss: LossComparison


@dataclass(frozen=True, kw_only=True)
class HeadMetrics:
    """Metrics of the teacher's head on all frames, with the features of a view set (or LIVE) and one matrix source."""

    view_set: str
    source: MatrixSource
    number: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """All comparisons of a study."""

    store: Path
    teacher: str
    frames: int
    comparisons: tuple[Comparison, ...]
    head: tuple[HeadMetrics, ...]


class FidelityStudy:
    """Compare a store with its live teacher.

    Raises:
        MismatchError: the store is another teacher's or holds no heatmaps, or its grid is not in the LiDAR frame with a
            row for each y.
        NotCachedError: the store has no views that can be compared.
    """

    def __init__(self, cache: TeacherCache, teacher: Teacher, draws: int = 2, seed: int = 0) -> None:
        cache.spec.require({"teacher": teacher.identity.model_dump(mode="json")}, cache.path)
        require_heatmap(cache.spec, cache.path)
        require_lidar_grid(cache.spec.heatmap_grid, cache.path)
        self.cache, self.teacher, self.draws, self.seed = cache, teacher, draws, seed
        self.view_sets = comparable_view_sets(cache.spec)
        self.augment = PUBLIC_AUGMENT if cache.spec.drawn is None else cache.spec.drawn.augment
        self.head, self.surrogate = TeacherHead(cache), SurrogateStudent(cache.spec)

    def run(self, frames: Frames, out: Path, progress: Callable[[int, int], None]) -> FidelityReport:
        """Compare on all frames of a split; the devkit's evaluations go to `out`.

        Raises:
            ConfigError: the devkit is not installed.
            NotCachedError: a frame was not dumped.
            DataError: the split has no annotations, or a file is missing.
        """
        require_devkit("fidelity")
        comparisons: list[Comparison] = []
        found: dict[tuple[str, MatrixSource, int], list[tuple[str, Detections]]] = defaultdict(list)
        for position, frame in enumerate(frames):
            points = teacher_points(frame, self.cache.spec.points)
            for trial in self._trials(frame, position):
                live = self.teacher([self.teacher.prepare(TeacherInput.of_view(frame, points, trial.matrix))])
                self.head.require_same(live)
                detections = self.head.detect(live.layers["head"], trial.matrix)
                found[LIVE, trial.source, trial.number].append((frame.token, detections))
                for view_set in trial.view_sets:
                    comparison, detections = self._compare(frame, view_set, trial.matrix, live)
                    comparisons.append(comparison)
                    found[view_set.name, trial.source, trial.number].append((frame.token, detections))
            progress(position + 1, len(frames))
        return FidelityReport(
            store=self.cache.path,
            teacher=self.teacher.identity.name,
            frames=len(frames),
            comparisons=tuple(comparisons),
            head=tuple(_evaluated(found, frames, out)),
        )

    def _trials(self, frame: Frame, position: int) -> Iterator[Trial]:
        views = dict(zip(self.cache.spec.views, self.cache.view_matrices([frame.token])[0], strict=True))
        rngs = [np.random.default_rng((self.seed, position, draw)) for draw in range(self.draws)]
        return make_trials(self.view_sets, views, self.augment, rngs)

    def _compare(
        self, frame: Frame, view_set: ViewSet, matrix: Matrix, live: TeacherOutput
    ) -> tuple[Comparison, Detections]:
        stored = self.cache.view_matrices([frame.token])[:, list(view_set.views)]
        view = view_set.views[nearest_view(matrix[None], stored)[0]]
        cached = self.cache.read((frame.token,), views=(view,)).to(live.probability.device)
        boxes = torch.from_numpy(transform_boxes(frame.boxes, matrix)).to(live.probability.device)
        sides = torch.from_numpy(matrix[None]), torch.from_numpy(frame.lidar_to_ego[None])
        grid = self.cache.spec.heatmap_grid
        to_cached = to_teacher(grid, grid, cached.view_matrix, *sides)
        warped = {layer.name: _warped(cached, layer, to_cached) for layer in self.cache.spec.layers}
        comparison = Comparison(
            view_set=view_set.name,
            token=frame.token,
            view=self.cache.spec.views[view],
            transform=BevTransform.from_matrix(matrix),
            layers={
                layer.name: _by_region(*warped[layer.name], live, boxes, layer) for layer in self.cache.spec.layers
            },
            loss=self.surrogate.loss(cached, live, boxes, torch.from_numpy(frame.labels), to_cached),
        )
        return comparison, self.head.detect(warped["head"][0], matrix)


def _warped(
    cached: TeacherBatch, layer: LayerSpec, to_cached: Float[Tensor, "1 4 4"] | None
) -> tuple[Float[Tensor, "1 C H W"], Bool[Tensor, "1 H W"]]:
    """Features of a layer warped to the student's frame, on the layer's own grid, and the valid mask."""
    features: Encoded = cached.features[layer.name]
    if to_cached is None:
        return features.decode(), torch.ones_like(features.values[:, 0], dtype=torch.bool)
    warped = warp(features, layer.grid, layer.grid, to_cached)
    return warped.features.decode(), warped.valid_mask


def _by_region(
    found: Float[Tensor, "1 C H W"],
    inside: Bool[Tensor, "1 H W"],
    live: TeacherOutput,
    boxes: Float[Tensor, "M 9"],
    layer: LayerSpec,
) -> dict[str, Similarity]:
    regions = split_regions(live.probability, pad_boxes((boxes,)), layer.grid)
    return {name: similarity(found, live.layers[layer.name], cells & inside) for name, cells in regions.items()}


def _evaluated(
    found: dict[tuple[str, MatrixSource, int], list[tuple[str, Detections]]], frames: Frames, out: Path
) -> Iterator[HeadMetrics]:
    for (view_set, source, number), detections in found.items():
        folder = out / "evaluations" / f"{view_set} {source} {number}".replace(",", "").replace(" ", "-")
        metrics = evaluate(detections, frames, folder, "lidar")
        yield HeadMetrics(view_set=view_set, source=source, number=number, metrics=metrics)
