"""`box_response` and `cross_head` under BEV augmentation, against loops over the objects in float64.

The student's world is the teacher's, flipped, scaled and turned; the loops move each of the teacher's boxes there.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.config.student import TASKS
from student.distill.terms.box_response import CODE_WEIGHTS
from tests.factories.box_terms import BOXES, GRID, LABELS, TASK_OF_LABEL, Batch, Head, build, code

HEIGHT, WIDTH = GRID.shape
SIDE_M = 0.8
TASK_OF_CHANNEL = [number for number, task in enumerate(TASKS) for _ in task]
MOVES = {"x": (0.0, 1.0, -1, 1), "y": (0.0, 1.0, 1, -1), "turn": (21.0, 1.0, 1, 1), "scale": (0.0, 1.05, 1, 1)}
MOVES["all"] = (-17.0, 0.95, -1, 1)


class Move(NamedTuple):
    """First flips (-1) of x and y, then a scale and a rotation."""

    degrees: float
    scale: float
    flip_x: int
    flip_y: int

    def turned(self, x: float, y: float) -> tuple[float, float]:
        c, s = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        x, y = x * self.flip_x, y * self.flip_y
        return c * x - s * y, s * x + c * y

    def back(self, x: float, y: float) -> tuple[float, float]:
        c, s = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        return self.flip_x * (c * x + s * y) / self.scale, self.flip_y * (c * y - s * x) / self.scale

    def to_teacher(self) -> Tensor:
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:2, 0], matrix[:2, 1] = torch.tensor(self.back(1, 0)), torch.tensor(self.back(0, 1))
        matrix[2, 2] = 1 / self.scale
        return matrix.expand(2, 4, 4)


def cell(x: float, y: float) -> tuple[float, float]:
    """Row and column, continuous."""
    return (y - GRID.y_range_m[0]) / SIDE_M, (x - GRID.x_range_m[0]) / SIDE_M


def known_cell(x: float, y: float) -> tuple[int, int] | None:
    row, column = (math.floor(part) for part in cell(x, y))
    return (row, column) if 0 <= row < HEIGHT and 0 <= column < WIDTH else None


def moved_code(one: Batch, place: tuple[int, int, int, int], move: Move) -> tuple[list[float], tuple[float, float]]:
    """The teacher's code (sample, task, row, column) as the student would write it, and x, y in its metres."""
    values = code(one.teacher.head_maps, *place)
    across, down, z, *sides, sine, cosine, vx, vy = values
    x, y = GRID.x_range_m[0] + (place[3] + across) * SIDE_M, GRID.y_range_m[0] + (place[2] + down) * SIDE_M
    x, y = (part * move.scale for part in move.turned(x, y))
    cosine, sine = move.turned(cosine, sine)
    vx, vy = (part * move.scale for part in move.turned(vx, vy))
    row, column = cell(x, y)
    log_scale = math.log(move.scale)
    return [column, row, z * move.scale, *(side + log_scale for side in sides), sine, cosine, vx, vy], (x, y)


def code_error(maps: dict[str, Tensor], place: tuple[int, int, int, int], expected: list[float]) -> float:
    ours = code(maps, *place)
    ours[0], ours[1] = ours[0] + place[3], ours[1] + place[2]
    return sum(weight * abs(a - b) for weight, a, b in zip(CODE_WEIGHTS, ours, expected, strict=True))


def peaks(one: Batch, threshold: float) -> Iterator[tuple[int, int, int, int, float]]:
    """Sample, channel, row, column and probability of each local maximum of the teacher's heatmap."""
    for sample, channel, row, column in np.ndindex(*one.teacher.heatmap.shape):
        heat = one.teacher.heatmap[sample, channel]
        value = heat[row, column]
        if value > threshold and value == heat[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max():
            yield sample, channel, row, column, value.item()


def mean_by_task(errors: dict[int, list[float]]) -> float:
    return sum(sum(of_task) / len(of_task) for of_task in errors.values())


@pytest.fixture(params=MOVES.values(), ids=MOVES)
def move(request: pytest.FixtureRequest) -> Move:
    return Move(*request.param)


def test_the_response_at_labels(move: Move) -> None:
    one, errors = Batch(), dict[int, list[float]]()
    for sample, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        for (x, y, *_), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            here, there = known_cell(x, y), known_cell(*move.back(x, y))
            if here and there:
                task = TASK_OF_LABEL[label]
                expected, _ = moved_code(one, (sample, task, *there), move)
                errors.setdefault(task, []).append(code_error(one.maps, (sample, task, *here), expected))
    assert errors
    found = one.terms(build({"kind": "box_response"}), move.to_teacher())
    assert found["distill/box_response/boxes"].item() == pytest.approx(mean_by_task(errors), rel=1e-5)


def test_the_response_at_the_teachers_peaks(move: Move) -> None:
    one, errors = Batch(), dict[int, list[float]]()
    for sample, channel, row, column, _ in peaks(one, 0.3):
        task = TASK_OF_CHANNEL[channel]
        expected, place = moved_code(one, (sample, task, row, column), move)
        if here := known_cell(*place):
            errors.setdefault(task, []).append(code_error(one.maps, (sample, task, *here), expected))
    assert sum(map(len, errors.values())) > 10
    term = {"kind": "box_response", "at": "teacher", "threshold": 0.3, "peaks": 500}
    found = one.terms(build(term), move.to_teacher())
    assert found["distill/box_response/boxes"].item() == pytest.approx(mean_by_task(errors), rel=1e-5)


def valid_cells(move: Move) -> np.ndarray:
    """Cells whose centre lies between the centres of the teacher's outermost cells."""
    valid = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for row, column in np.ndindex(HEIGHT, WIDTH):
        centre = GRID.x_range_m[0] + (column + 0.5) * SIDE_M, GRID.y_range_m[0] + (row + 0.5) * SIDE_M
        down, across = cell(*move.back(*centre))
        valid[row, column] = -1e-6 < down - 0.5 < HEIGHT - 1 + 1e-6 and -1e-6 < across - 0.5 < WIDTH - 1 + 1e-6
    return valid


def focal(probability: float, target: float) -> float:
    if target == 1:
        return -((1 - probability) ** 2) * math.log(probability)
    return -((1 - target) ** 4) * probability**2 * math.log(1 - probability)


def crossed(one: Batch, head: nn.Module, adapter: nn.Module, move: Move, least: float) -> tuple[float, float]:
    """The heatmap's and the boxes' part, cell by cell. No box is large enough for a radius of more than 2 cells."""
    logits, maps = head(adapter(one.features))
    valid = valid_cells(move)
    target = np.zeros((2, 10, HEIGHT, WIDTH))
    errors: dict[int, list[float]] = {}
    for sample, channel, row, column, _ in peaks(one, least):
        task = TASK_OF_CHANNEL[channel]
        expected, place = moved_code(one, (sample, task, row, column), move)
        assert max(expected[3:5]) < math.log(4)
        if here := known_cell(*place):
            for down, across in np.ndindex(5, 5):
                r, c = here[0] + down - 2, here[1] + across - 2
                if 0 <= r < HEIGHT and 0 <= c < WIDTH:
                    value = math.exp(-((down - 2) ** 2 + (across - 2) ** 2) / (2 * (5 / 6) ** 2))
                    target[sample, channel, r, c] = max(target[sample, channel, r, c], value)
            if valid[here]:
                errors.setdefault(task, []).append(code_error(maps, (sample, task, *here), expected))
    loss, count = np.zeros(len(TASKS)), np.zeros(len(TASKS))
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    for sample, channel, row, column in np.ndindex(*target.shape):
        if valid[row, column]:
            goal = target[sample, channel, row, column]
            loss[TASK_OF_CHANNEL[channel]] += focal(probability[sample, channel, row, column].item(), goal)
            count[TASK_OF_CHANNEL[channel]] += goal == 1
    return (loss / count.clip(min=1)).sum(), mean_by_task(errors)


@pytest.mark.parametrize("name", ["none", *MOVES])
def test_the_crossed_head(name: str) -> None:
    move = Move(*MOVES.get(name, (0.0, 1.0, 1, 1)))
    head, one = Head().double().eval(), Batch()
    term = {"kind": "cross_head", "threshold": 0.2, "peaks": 500, "heatmap_weight": 2.0, "box_weight": 0.5}
    objective = build(term, heads={0: head})
    heatmap, boxes = crossed(
        one, head, objective.pairs[0].student_adapter, move, 1 / (1 + math.exp(-0.1 * math.log(0.2 / 0.8)))
    )
    found = one.terms(objective, None if name == "none" else move.to_teacher())
    assert found["distill/cross_head/head/heatmap"].item() == pytest.approx(2 * heatmap, rel=1e-5)
    assert found["distill/cross_head/head/boxes"].item() == pytest.approx(boxes / 2, rel=1e-5)


def test_gradients_of_the_crossed_head_are_those_of_finite_differences() -> None:
    head, one = Head().double(), Batch()
    objective = build({"kind": "cross_head", "threshold": 0.2}, heads={0: head})
    matrix = Move(*MOVES["all"]).to_teacher()

    def total(features: Tensor) -> Tensor:
        one.features = features
        return torch.stack(list(one.terms(objective, matrix).values())).sum()

    assert torch.autograd.gradcheck(total, (one.features.requires_grad_(),), fast_mode=True)
