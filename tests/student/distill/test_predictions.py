import pytest
import torch

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from student.distill.predictions import BatchPredictions, TeacherPredictions, class_order, clipped_sigmoid
from student.distill.regions import CLIP


def test_clipped() -> None:
    found = clipped_sigmoid(torch.tensor([[[[-50.0, 0.0, 50.0]]]]))
    assert found.flatten().tolist() == pytest.approx([CLIP, 0.5, 1 - CLIP])


def test_the_teacher_may_have_classes_beside_the_students() -> None:
    theirs = ("car", "bus", "truck")
    assert class_order(theirs, ("truck", "car"), "cache 0") == (2, 0)
    with pytest.raises(
        MismatchError, match=r"lacks a class of the student's \(cache 0\); got car, bus, truck; expected"
    ):
        class_order(theirs, ("car", "tram"), "cache 0")


def test_a_teachers_heatmap_is_that_of_the_students_classes() -> None:
    """In a single cell the teacher has 0.8 for its first class, 0.4 and 0.2; the student has the last two, swapped."""
    heatmap = torch.tensor([204, 102, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    grid = BevGrid(x_range_m=(0.0, 1.0), y_range_m=(0.0, 1.0), cell_m=(1.0, 1.0))
    predictions = BatchPredictions(
        boxes=torch.zeros(1, 0, 9),
        channels=torch.zeros(1, 0, dtype=torch.int64),
        task_slices=(slice(0, 2),),
        grid=grid,
        student_logits=torch.zeros(1, 2, 1, 1),
        teachers=(TeacherPredictions(heatmap=heatmap, canvas_mask=torch.ones(1, 1, 1, dtype=torch.bool)),),
        teacher_order=((2, 1),),
        epoch=0,
    )
    assert predictions.teacher_max(0).item() == pytest.approx(0.4)
    assert predictions.teacher_probability(0).flatten().tolist() == pytest.approx([0.2, 0.4])
