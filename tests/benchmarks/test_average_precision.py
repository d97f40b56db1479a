"""mAP from matches: the devkit's own numbers, by hand for weights and bands."""

import numpy as np
import pytest
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox

from benchmarks.average_precision import RULES, Evaluated, Matches, mean_average_precision, paired_bootstrap


def box(token: str, x: float, y: float, score: float = -1.0, name: str = "car") -> DetectionBox:
    return DetectionBox(
        sample_token=token,
        translation=(x, y, 0.0),
        ego_translation=(x, y, 0.0),
        size=(1.0, 1.0, 1.0),
        rotation=(1.0, 0.0, 0.0, 0.0),
        detection_name=name,
        detection_score=float(score),
    )


def random_boxes(rng: np.random.Generator, tokens: list[str], each: int, scored: bool) -> EvalBoxes:
    boxes = EvalBoxes()
    for token in tokens:
        places = rng.uniform(-12, 12, (each, 2))
        scores = rng.random(each) if scored else np.full(each, -1.0)
        names = rng.choice(["car", "pedestrian"], each)
        boxes.add_boxes(
            token, [box(token, *place, score, name) for place, score, name in zip(places, scores, names, strict=True)]
        )
    return boxes


@pytest.fixture(scope="module")
def evaluated() -> Evaluated:
    rng = np.random.default_rng(0)
    tokens = [f"t{number}" for number in range(30)]
    truth, found = random_boxes(rng, tokens, 9, scored=False), random_boxes(rng, tokens, 30, scored=True)
    return Evaluated(truth=truth, found=found, scene={token: number // 3 for number, token in enumerate(tokens)})


def official(evaluated: Evaluated, name: str) -> float:
    aps = []
    for within_m in RULES.dist_ths:
        curve = accumulate(evaluated.truth, evaluated.found, name, center_distance, within_m)
        aps.append(calc_ap(curve, RULES.min_recall, RULES.min_precision))
    return float(np.mean(aps))


@pytest.mark.parametrize("name", ["car", "pedestrian", "bus"])
def test_average_precision_is_the_devkits(evaluated: Evaluated, name: str) -> None:
    expected = official(evaluated, name)
    assert evaluated.matches()[name].average_precision() == pytest.approx(expected, abs=1e-12)
    assert expected > 0 or name == "bus"


def test_a_scene_that_weighs_twice_counts_as_one_that_is_there_twice(evaluated: Evaluated) -> None:
    tokens = [token for token, scene in evaluated.scene.items() if scene < 2]
    truth, found = EvalBoxes(), EvalBoxes()
    scenes = {}
    for copy, token in [(0, token) for token in tokens] + [(1, token) for token in tokens if evaluated.scene[token]]:
        name = f"{token}-{copy}"
        for boxes, own in ((truth, evaluated.truth), (found, evaluated.found)):
            boxes.add_boxes(name, own[token])
        scenes[name] = evaluated.scene[token]
    twice = Evaluated(truth=truth, found=found, scene=scenes).matches()["car"].average_precision()
    weights = np.zeros(10)
    weights[:2] = 1, 2
    # Of equal scores, one is sampled before the other: precision differs between them.
    assert evaluated.matches()["car"].average_precision(weights) == pytest.approx(twice, abs=0.02)


def test_a_band_has_its_own_objects_and_detections() -> None:
    truth, found = EvalBoxes(), EvalBoxes()
    truth.add_boxes("a", [box("a", 3, 0), box("a", 13, 0)])
    found.add_boxes("a", [box("a", 3, 0, 0.9), box("a", 20, 0, 0.8)])
    evaluated = Evaluated(truth=truth, found=found, scene={"a": 0})
    near, far = (mean_average_precision(evaluated.matches(band)) for band in ((0, 8), (8, 16)))
    assert near == pytest.approx(1)
    assert far == 0


def test_the_bootstrap_of_equal_detections_is_0(evaluated: Evaluated) -> None:
    assert paired_bootstrap(evaluated.matches(), evaluated.matches(), draws=5) == (0.0, 0.0)


def test_the_bootstrap_of_scenes_by_hand() -> None:
    def found(hits: list[bool]) -> dict[str, Matches]:
        count = len(hits)
        columns = np.repeat(np.asarray(hits)[:, None], 4, axis=1)
        return {
            "car": Matches(
                scores=np.ones(count), hits=columns, scene=np.arange(count), objects=np.ones(count, dtype=np.int64)
            )
        }

    # All found against none: the difference is 1 whatever is drawn.
    assert paired_bootstrap(found([True] * 6), found([False] * 6), draws=20) == (pytest.approx(1), pytest.approx(0))
    difference, error = paired_bootstrap(found([True, True, True, False]), found([False] * 4), draws=400)
    assert 0.5 < difference < 0.8
    assert 0.1 < error < 0.4
