import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.grid import BevGrid
from cache.geometry.views import transform_boxes
from student.distill.head_maps import HEAD_MAPS, Cells, Objects, TeacherBoxes, boxes_of, codes_at

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(1.0, 1.0))
CAR, PEDESTRIAN = 0, 1
BOX = (2.3, 1.6, -0.5, 4.0, 2.0, 1.5, 0.6, 3.0, -1.0)
"""Its centre is in row 5, column 10, at (0.3, 0.6) of the cell."""


def teacher(**changes: object) -> TeacherBoxes:
    """A teacher of two classes and two tasks, which sees one car with probability 0.8 and a weaker pedestrian."""
    height, width = GRID.shape
    heatmap = torch.zeros(1, 2, height, width)
    heatmap[0, CAR, 5, 10], heatmap[0, CAR, 5, 11], heatmap[0, PEDESTRIAN, 1, 2] = 0.8, 0.7, 0.4
    maps = {name: torch.zeros(1, 2, size, height, width) for name, size in HEAD_MAPS.items()}
    x, y, z, dx, dy, dz, yaw, vx, vy = BOX
    code = {
        "reg": (x - 2, y - 1),
        "height": (z + dz / 2,),
        "dim": (math.log(dx), math.log(dy), math.log(dz)),
        "rot": (math.sin(yaw), math.cos(yaw)),
        "vel": (vx, vy),
    }
    for name, values in code.items():
        maps[name][0, 0, :, 5, 10] = torch.tensor(values)
    found = TeacherBoxes(heatmap=heatmap, maps=maps, task_of_channel=torch.tensor([0, 1]), grid=GRID, student=GRID)
    return replace(found, **changes)


def test_peaks_are_the_local_maxima_above_a_threshold() -> None:
    objects, codes = teacher().peaks(4, 0.3)
    assert objects.channels.tolist() == [[CAR, PEDESTRIAN, -1, -1]]
    assert objects.scores[0].tolist() == pytest.approx([0.8, 0.4, 0.0, 0.0])
    assert objects.boxes[0, 0].tolist() == pytest.approx(BOX, abs=1e-5)
    assert not objects.boxes[0, 2:].any()
    assert codes[0, 0, :2].tolist() == pytest.approx([10.3, 5.6])
    assert teacher().peaks(4, 0.5)[0].channels.tolist() == [[CAR, -1, -1, -1]]
    assert teacher().peaks(1, 0.3)[0].channels.tolist() == [[CAR]]


def test_a_head_of_plain_dimensions() -> None:
    plain = teacher(log_dimensions=False)
    plain.maps["dim"].exp_()
    assert plain.peaks(1, 0.3)[0].boxes[0, 0].tolist() == pytest.approx(BOX, abs=1e-5)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_a_moved_teachers_boxes_are_moved_back(flip: float) -> None:
    """The student sees the world turned by 30 degrees, 1.05 times as large, and flipped."""
    angle, scale = math.radians(30), 1.05
    linear = (
        scale
        * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        @ np.diag([1.0, flip])
    )
    to_student = np.eye(4)
    to_student[:2, :2], to_student[2, 2] = linear, scale
    to_teacher = torch.from_numpy(np.linalg.inv(to_student))[None]
    moved = teacher(to_teacher=to_teacher)
    expected = transform_boxes(np.array([BOX], dtype=np.float32), to_student)[0]
    objects, codes = moved.peaks(1, 0.3)
    assert objects.boxes[0, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    # The same box, read where the student's label is.
    place = torch.from_numpy(expected[None, None, :2]).double()
    at, inside = moved.at(place, torch.tensor([[CAR]]))
    assert inside.all()
    torch.testing.assert_close(at, codes)


def test_a_point_beyond_the_teachers_grid_is_not_inside() -> None:
    _, inside = teacher().at(torch.tensor([[[2.3, 1.6], [9.0, 0.0]]]), torch.tensor([[CAR, CAR]]))
    assert inside.tolist() == [[True, False]]


def test_codes_and_boxes_are_each_others_inverse() -> None:
    one = teacher()
    cells = Cells.of(torch.tensor([[[2.3, 1.6]]]), GRID)
    codes = codes_at(one.maps, cells, torch.tensor([[0]]))
    assert boxes_of(codes, GRID)[0, 0].tolist() == pytest.approx(BOX, abs=1e-5)


def test_cells_of_a_valid_mask() -> None:
    valid = torch.zeros(1, *GRID.shape, dtype=torch.bool)
    valid[0, 5, 10] = True
    cells = Cells.of(torch.tensor([[[2.3, 1.6], [-3.0, 0.0], [20.0, 1.6]]]), GRID)
    assert cells.inside.tolist() == [[True, True, False]]
    assert cells.within(valid).tolist() == [[True, False, False]]


def test_objects_of_some_samples() -> None:
    def two(value: float) -> Objects:
        boxes: Tensor = torch.full((2, 1, 9), value)
        return Objects(boxes=boxes, channels=torch.zeros(2, 1, dtype=torch.long), scores=torch.ones(2, 1))

    mixed = two(1.0).of_samples((True, False)) + two(2.0).of_samples((False, True))
    assert mixed.channels.tolist() == [[0, -1], [-1, 0]]
    assert mixed.boxes[..., 0].tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert mixed.scores.tolist() == [[1.0, 0.0], [0.0, 1.0]]
