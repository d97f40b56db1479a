from pathlib import Path

import pytest
import torch

from cache.errors import MismatchError
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from student.evaluation.teacher_boxes import predicted_boxes, require_lidar_grid, teacher_detections
from student.models.decoding import decode
from tests.factories.students import GRID, dump_views


def test_boxes_of_a_view_come_back_to_the_lidar(made_frames: Frames, tmp_path: Path) -> None:
    """The same teacher in the view that a store of drawn views begins with: each box moved, then moved back."""
    store = dump_views(tmp_path / "drawn.zarr", made_frames, canonical=False, drawn=1)
    cache, token = TeacherCache(store), made_frames.tokens[0]
    ((_, found),) = teacher_detections(cache, [token])
    batch = cache.read((token,), head_maps=True)
    maps = {name: value.float() for name, value in batch.head_maps.items()}
    teacher, grid = cache.spec.teacher, cache.spec.heatmap_grid
    (in_view,) = decode(batch.heatmap.float() / 255, maps, grid, teacher.tasks, teacher.decoding)
    assert len(found) == len(in_view) > 0
    matrix = batch.view_matrix[0].double()
    there = in_view.boxes[:, :3].double() @ torch.linalg.inv(matrix[:3, :3]).T
    torch.testing.assert_close(found.boxes[:, :3].double(), there, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found.boxes[:, :2], in_view.boxes[:, :2], atol=0.1)


def test_boxes_to_train_on_are_those_of_some_score(made_frames: Frames, views_store: Path) -> None:
    cache, token = TeacherCache(views_store), made_frames.tokens[0]
    ((_, found),) = teacher_detections(cache, [token])
    least = float(found.scores.max()) - 1e-6
    boxes, labels = predicted_boxes(cache, [token], least)[token]
    assert 0 < len(boxes) == len(labels) == int((found.scores >= least).sum()) < len(found)
    assert torch.equal(torch.from_numpy(boxes), found.boxes[found.scores >= least])


@pytest.mark.parametrize("change", [{"frame": "ego"}, {"axes": "xy"}])
def test_maps_of_another_frame_are_not_decoded(change: dict[str, str]) -> None:
    require_lidar_grid(GRID, Path("teacher.zarr"))
    with pytest.raises(MismatchError, match="boxes cannot be decoded from maps of another frame or other axes"):
        require_lidar_grid(GRID.model_copy(update=change), Path("teacher.zarr"))
