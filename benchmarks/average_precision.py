"""nuScenes' mAP from matches that are made once: by distance from the car, and under resampled scenes.

The matches of a frame do not depend on other frames, so a bootstrap over scenes weighs them instead of matching anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from scipy.spatial.distance import cdist

from cache.nuscenes.frames import Frames
from student.evaluation.official_tables import OfficialEval

RULES = config_factory("detection_cvpr_2019")
RECALLS = np.linspace(0, 1, 101)
Band = tuple[float, float]
"""Nearest and farthest distance from the car, in metres."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The detections of one class, by descending score, and the number of its objects in each of S scenes.

    hits: within each of the devkit's D distances, whether the detection has an object of its own.
    """

    scores: Float[np.ndarray, "N"]
    hits: Bool[np.ndarray, "N D"]
    scene: Int[np.ndarray, "N"]
    objects: Int[np.ndarray, "S"]

    def average_precision(self, weights: Float[np.ndarray, "S"] | None = None) -> float:
        """The mean over the distances; scenes count as often as their weight says, by default once."""
        of_scene = np.ones(len(self.objects)) if weights is None else weights
        counts = of_scene[self.scene]
        there = counts > 0
        hits, counts, total = self.hits[there], counts[there], float(of_scene @ self.objects)
        if not total or not len(hits):
            return 0.0
        return float(np.mean([_average_precision(column * counts, counts, total) for column in hits.T]))


def _average_precision(hits: Float[np.ndarray, "N"], counts: Float[np.ndarray, "N"], objects: float) -> float:
    """As the devkit's `accumulate` and `calc_ap`."""
    if not hits.any():
        return 0.0
    found = np.cumsum(hits)
    precision = np.interp(RECALLS, found / objects, found / np.cumsum(counts), right=0)
    kept = precision[round(100 * RULES.min_recall) + 1 :] - RULES.min_precision
    return float(np.maximum(kept, 0).mean()) / (1 - RULES.min_precision)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The objects and detections of an evaluation, filtered as the devkit does, and the scene of each frame."""

    truth: EvalBoxes
    found: EvalBoxes
    scene: Mapping[str, int]

    @classmethod
    def of(cls, folder: Path, frames: Frames) -> "Evaluated":
        """From what `evaluate` has left in a folder."""
        official = OfficialEval(frames, folder / "results_nusc.json", folder)
        names = [frames[token].scene for token in frames.tokens]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        scene = {token: numbers[name] for token, name in zip(frames.tokens, names, strict=True)}
        return cls(truth=official.gt_boxes, found=official.pred_boxes, scene=scene)

    def matches(self, band: Band = (0.0, np.inf)) -> dict[str, Matches]:
        """By class; of a band, objects and detections at these distances from the car."""
        return {name: self._match(name, band) for name in NAMES}

    def _match(self, name: str, band: Band) -> Matches:
        def chosen(box: DetectionBox) -> bool:
            return box.detection_name == name and band[0] <= box.ego_dist < band[1]

        objects = np.zeros(max(self.scene.values()) + 1, dtype=np.int64)
        scores, hits, scenes = [], [np.zeros((0, len(RULES.dist_ths)), dtype=bool)], []
        for token in self.truth.sample_tokens:
            theirs, ours = ([box for box in boxes[token] if chosen(box)] for boxes in (self.truth, self.found))
            ours = sorted(ours, key=lambda box: -box.detection_score)
            objects[self.scene[token]] += len(theirs)
            scores += [box.detection_score for box in ours]
            scenes += [self.scene[token]] * len(ours)
            hits.append(_hits(theirs, ours))
        order = np.argsort(-np.asarray(scores), kind="stable")
        scene = np.asarray(scenes, dtype=np.int64)[order]
        return Matches(scores=np.asarray(scores)[order], hits=np.concatenate(hits)[order], scene=scene, objects=objects)


NAMES = tuple(RULES.class_names)


def _hits(truth: Sequence[DetectionBox], found: Sequence[DetectionBox]) -> Bool[np.ndarray, "N D"]:
    """Each detection takes the nearest object that no surer one has taken, if that is near enough."""
    hits = np.zeros((len(found), len(RULES.dist_ths)), dtype=bool)
    if not truth or not found:
        return hits
    distances_m = cdist(*([box.translation[:2] for box in boxes] for boxes in (found, truth)))
    for column, within_m in enumerate(RULES.dist_ths):
        free = distances_m.copy()
        for row in range(len(found)):
            nearest = int(free[row].argmin())
            if free[row, nearest] < within_m:
                hits[row, column] = True
                free[:, nearest] = np.inf
    return hits


def mean_average_precision(matches: Mapping[str, Matches], weights: Float[np.ndarray, "S"] | None = None) -> float:
    """The mean over the classes that have objects."""
    known = [each for each in matches.values() if each.objects.any()]
    return float(np.mean([each.average_precision(weights) for each in known]))


def paired_bootstrap(
    ours: Mapping[str, Matches], theirs: Mapping[str, Matches], draws: int = 500, seed: int = 0
) -> tuple[float, float]:
    """The difference of two mAPs on the same frames, and its standard error under resampled scenes."""
    rng = np.random.default_rng(seed)
    scenes = len(next(iter(ours.values())).objects)
    weights = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=draws).astype(float)
    differences = [mean_average_precision(ours, each) - mean_average_precision(theirs, each) for each in weights]
    return mean_average_precision(ours) - mean_average_precision(theirs), float(np.std(differences, ddof=1))
