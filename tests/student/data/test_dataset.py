from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from cache.errors import DataError
from cache.geometry.views import PUBLIC_AUGMENT
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.spec import CodecSpec
from cache.store.batch import TeacherBatch
from cache.store.codec import Encoded
from cache.store.reader import TeacherCache
from student.config.student import StudentBevAugmentConfig, StudentConfig
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.samplers import SampleDraw
from student.data.teacher_source import TeacherSource

CONFIG = StudentConfig.model_validate({"image": {"size": (128, 352)}, "detector": {"image_stride": 16}})


def test_a_batch_has_the_promised_shapes(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, CONFIG, times=2, with_depth=True)
    batch = dataset.collate([dataset[0], dataset[SampleDraw(index=1, seed=(1, 2, 3))]])
    assert batch.images.shape == (2, 2, 6, 3, 128, 352)
    assert batch.images.dtype == torch.uint8
    assert batch.depth_m is not None
    assert batch.depth_m.shape == (2, 6, 8, 22)
    assert batch.tokens == made_frames.tokens
    assert batch.boxes[0].shape == (len(made_frames[0].boxes), 9)


def test_history_moves_with_the_ego(made_frames: Frames) -> None:
    first, second = (StudentDataset(made_frames, CONFIG, times=2)[index].to_current[0] for index in (0, 1))
    # The scene's first frame is its own history.
    torch.testing.assert_close(first, torch.eye(4).expand(2, 4, 4), atol=1e-4, rtol=0)
    moved = np.linalg.inv(made_frames[1].lidar_to_global) @ made_frames[0].lidar_to_global
    torch.testing.assert_close(second[1], torch.from_numpy(moved).float(), atol=1e-4, rtol=1e-4)
    assert second[1, :2, 3].norm() > 0.5


def test_history_goes_back_in_steps(made_frames: Frames) -> None:
    """Ten frames of a scene: three back, and three again, until the first."""
    config = CONFIG.model_copy(update={"detector": CONFIG.detector.model_copy(update={"history_step": 3})})
    dataset = StudentDataset(made_frames, config, times=3)
    scene = [replace(made_frames[0], token=str(i), previous=str(i - 1) if i else None) for i in range(10)]
    dataset.frames = {frame.token: frame for frame in scene}
    assert [[frame.token for frame in dataset._history(scene[i])] for i in (9, 4, 0)] == [
        ["9", "6", "3"],
        ["4", "1", "0"],
        ["0", "0", "0"],
    ]


def test_a_seed_decides_every_draw(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, CONFIG)
    same, again, other = (dataset[SampleDraw(index=0, seed=(0, 0, seed))] for seed in (5, 5, 6))
    assert torch.equal(same.images, again.images)
    assert torch.equal(same.image_matrix, again.image_matrix)
    assert not torch.equal(same.image_matrix, other.image_matrix)


def test_lidar_is_read_only_for_a_detector_that_learns_depth(
    made_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_depth = StudentDataset(made_frames, CONFIG, with_depth=True)[0]
    assert with_depth.require_depth_m().shape == (1, 6, 8, 22)
    monkeypatch.setattr("student.data.dataset.camera_points", None)
    dataset = StudentDataset(made_frames, CONFIG)
    batch = dataset.collate([dataset[0]])
    assert batch.depth_m is None
    with pytest.raises(DataError, match="the detector learns depth and the batch has none"):
        batch.require_depth_m()


def test_data_loader_pins_every_tensor_of_a_batch(made_frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = replace(StudentDataset(made_frames, CONFIG, with_depth=True)[0], teachers=(small_teacher_batch(),))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert pin_memory(batch).tokens == batch.tokens
    assert {id(tensor) for tensor in tensors_of(batch)} == {id(tensor) for tensor in pinned}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_come_pinned_where_there_is_a_gpu(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, CONFIG, with_depth=True)
    loader = Loader(dataset, collate_fn=dataset.collate, num_workers=1)
    assert all(tensor.is_pinned() for tensor in tensors_of(next(iter(loader))))


AUGMENTED = CONFIG.model_copy(
    update={"bev_augment": StudentBevAugmentConfig.model_validate(PUBLIC_AUGMENT.model_dump())}
)


def test_the_teacher_is_read_in_the_view_nearest_to_the_draw(made_frames: Frames, views_store: Path) -> None:
    cache = TeacherCache(views_store)
    dataset = StudentDataset(made_frames, AUGMENTED, sources=(TeacherSource(cache=cache, layers=("head",)),))
    batch = dataset.collate([dataset[SampleDraw(index=index % 2, seed=(index,))] for index in range(8)])
    (teacher,) = batch.teachers
    stored = torch.from_numpy(cache.view_matrices(batch.tokens))
    pairs = zip(stored, teacher.view_matrix, strict=True)
    used = [[torch.equal(view, read) for view in views].index(True) for views, read in pairs]
    assert len(set(used)) > 3
    for row, (view, token) in enumerate(zip(used, batch.tokens, strict=True)):
        # The way from the view to the draw never mirrors, as the store has views of all handednesses, and no reflection
        # with drawn views beside it is further than a rotation of 22.5 degrees and 5 % in scale.
        way = batch.bev_matrix[row] @ torch.linalg.inv(stored[row, view])
        assert torch.linalg.det(way[:2, :2]) > 0
        assert abs(torch.rad2deg(torch.atan2(way[1, 0], way[0, 0]))) < 22.6
        kept = cache.read((token,), layers=("head",), views=(view,))
        assert torch.equal(kept.features["head"].values[0], teacher.features["head"].values[row])


def test_replayed_draws_are_the_views_that_the_teacher_saw(made_frames: Frames, views_store: Path) -> None:
    cache = TeacherCache(views_store)
    replaying = CONFIG.model_copy(update={"bev_augment": StudentBevAugmentConfig(replay=True)})
    dataset = StudentDataset(made_frames, replaying, sources=(TeacherSource(cache=cache, layers=()),))
    draws = [SampleDraw(index=0, seed=(seed,)) for seed in range(8)]
    batch, again = (dataset.collate([dataset[draw] for draw in draws]) for _ in range(2))
    (first, second) = cache.view_matrices(made_frames.tokens[:1])[0, 4:]
    seen = [[matrix.equal(torch.from_numpy(view)) for view in (first, second)] for matrix in batch.bev_matrix]
    assert all(sum(row) == 1 for row in seen)
    assert 0 < sum(row[0] for row in seen) < len(draws)
    assert torch.equal(batch.teachers[0].view_matrix, batch.bev_matrix)
    assert torch.equal(again.bev_matrix, batch.bev_matrix)
    # Without a draw, as in an evaluation, nothing is replayed.
    assert torch.equal(dataset[0].bev_matrix[0], torch.eye(4))


def test_the_calibration_of_the_lidar_comes_along(made_frames: Frames) -> None:
    batch = StudentDataset(made_frames, CONFIG)[0]
    np.testing.assert_allclose(batch.lidar_to_ego[0], made_frames[0].lidar_to_ego, rtol=1e-6)


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """All of them."""
    values = [getattr(batch, field.name) for field in fields(batch)]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    teachers = [tensor for part in parts if isinstance(part, TeacherBatch) for tensor in teacher_tensors(part)]
    return [part for part in parts if isinstance(part, torch.Tensor)] + teachers


def teacher_tensors(teacher: TeacherBatch) -> list[torch.Tensor]:
    layers = [tensor for layer in teacher.features.values() for tensor in (layer.values, layer.scale)]
    return [*layers, teacher.heatmap, teacher.canvas_mask, *teacher.head_maps.values(), teacher.view_matrix]


def small_teacher_batch() -> TeacherBatch:
    values = torch.zeros(1, 2, 4, 4, dtype=torch.uint8)
    return TeacherBatch(
        tokens=("a",),
        features={"head": Encoded(values=values, scale=torch.ones(1, 2), codec=CodecSpec())},
        heatmap=values.clone(),
        canvas_mask=torch.zeros(1, 4, 4, dtype=torch.bool),
        head_maps={"reg": torch.zeros(1, 1, 2, 4, 4, dtype=torch.float16)},
        view_matrix=torch.eye(4)[None],
    )


def test_predicted_boxes_replace_a_frames_annotations_and_move_with_the_augmentation(made_frames: Frames) -> None:
    box, labels = np.float32([[1, 2, -1, 4, 2, 1.5, 0.3, 0, 0]]), np.array([7])
    boxes = {made_frames.tokens[1]: (box, labels)}
    dataset = StudentDataset(made_frames, AUGMENTED, unlabelled=boxes)
    batch = dataset.collate([dataset[0], dataset[1], dataset[SampleDraw(index=1, seed=(1,))]])
    assert len(batch.boxes[0]) == len(made_frames[0].boxes)
    assert torch.equal(batch.boxes[1], torch.from_numpy(box))
    assert batch.labels[2].tolist() == [7]
    moved = batch.bev_matrix[2] @ torch.tensor([1.0, 2, -1, 1])
    torch.testing.assert_close(batch.boxes[2][0, :3], moved[:3])
