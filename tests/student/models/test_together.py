"""A box, a point and a feature stay together under any BEV matrix: the real dataset, the detectors' own geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.geometry.views import PUBLIC_AUGMENT, transform_boxes
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from student.config.student import StudentBevAugmentConfig, StudentConfig
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.samplers import SampleDraw
from student.data.teacher_source import TeacherSource
from student.distill.warp import to_teacher, warp_max
from student.models.bev_encoder import align
from student.models.lift_splat import Cameras, cells_of_points, frustum_points

CONFIG = StudentConfig.model_validate(
    {
        "image": {"size": (128, 352)},
        "detector": {"grid": {"x_range_m": (-16, 16), "y_range_m": (-16, 16), "cell_m": (0.8, 0.8)}},
        "bev_augment": StudentBevAugmentConfig.model_validate(PUBLIC_AUGMENT.model_dump()),
    }
)
GRID = CONFIG.detector.grid
SEEDS = range(4)


@pytest.fixture(scope="module")
def augmented(made_frames: Frames, views_store: Path) -> Batch:
    """The second frame, which has a first one behind it, under four draws."""
    source = TeacherSource(cache=TeacherCache(views_store), layers=("head",))
    dataset = StudentDataset(made_frames, CONFIG, times=2, with_depth=True, sources=(source,))
    return dataset.collate([dataset[SampleDraw(index=1, seed=(seed,))] for seed in SEEDS])


@pytest.fixture(scope="module")
def plain(made_frames: Frames) -> Batch:
    """The same frame as it is."""
    return StudentDataset(made_frames, CONFIG, times=2, with_depth=True)[1]


def cameras_of(batch: Batch, time: int = 0) -> Cameras:
    return Cameras(
        intrinsics=batch.intrinsics[:, time],
        image_matrix=batch.image_matrix[:, time],
        camera_to_lidar=batch.camera_to_lidar[:, time],
        bev_matrix=batch.bev_matrix,
    )


def pixels_of(points: Tensor, batch: Batch, sample: int, undo: bool) -> Tensor:
    """Pixels (N, M, 2) of the original images on which BEV points (M, 3) fall, and their depths (N, M)."""
    to_bev = batch.bev_matrix[sample].double() if undo else torch.eye(4, dtype=torch.float64)
    from_bev = torch.linalg.inv(to_bev @ batch.camera_to_lidar[sample, 0].double())
    transformed = points.double() @ from_bev[:, :3, :3].mT + from_bev[:, None, :3, 3]
    pixels = (transformed / transformed[..., 2:]) @ batch.intrinsics[sample, 0].double().mT
    return torch.cat([pixels[..., :2], transformed[..., 2:]], dim=-1)


def test_draws_differ(augmented: Batch) -> None:
    assert torch.linalg.det(augmented.bev_matrix).sign().unique().numel() == 2
    assert len({tuple(matrix.flatten().tolist()) for matrix in augmented.bev_matrix}) == len(SEEDS)


def test_a_boxs_centre_stays_on_its_pixels_at_its_depth(augmented: Batch, plain: Batch) -> None:
    expected = pixels_of(plain.boxes[0][:, :3], plain, 0, undo=False)
    for sample in SEEDS:
        found = pixels_of(augmented.boxes[sample][:, :3], augmented, sample, undo=True)
        torch.testing.assert_close(found, expected, atol=0.05, rtol=1e-4)


def test_lift_splat_puts_a_pixel_at_the_augmented_place_of_its_depth(augmented: Batch, plain: Batch) -> None:
    """Of all pixels and bins, the one nearest to where a box is lands within a pixel's and a bin's reach of the box."""
    size, depths = (32, 88), tuple(np.arange(2.0, 30.0, 0.5))
    for sample in SEEDS:
        one = Cameras(**{name: value[sample : sample + 1] for name, value in vars(cameras_of(augmented)).items()})
        points = frustum_points(one, (128, 352), size, depths)[0].flatten(0, -2)
        transformed = pixels_of(augmented.boxes[sample][:, :3], augmented, sample, undo=True)
        homogeneous = torch.cat([transformed[..., :2], torch.ones_like(transformed[..., :1])], dim=-1)
        shown = homogeneous @ augmented.image_matrix[sample, 0].double().mT
        inside = (shown[..., 0] > 0) & (shown[..., 0] < 351) & (shown[..., 1] > 0) & (shown[..., 1] < 127)
        visible = (inside & (transformed[..., 2] > 2) & (transformed[..., 2] < 29)).any(dim=0)
        assert visible.sum() >= 2
        distance = torch.cdist(augmented.boxes[sample][visible, :3], points).amin(dim=1)
        assert distance.max() < 0.6


def test_velocities_turn_and_grow_with_the_boxes(made_frames: Frames, augmented: Batch) -> None:
    boxes = made_frames[1].boxes.copy()
    boxes[:, 7:9] = np.random.default_rng(0).normal(size=(len(boxes), 2)) * 5
    later = boxes.copy()
    later[:, :2] += 2 * boxes[:, 7:9]
    for matrix in augmented.bev_matrix.double().numpy():
        now, then = transform_boxes(boxes, matrix), transform_boxes(later, matrix)
        np.testing.assert_allclose(now[:, :2] + 2 * now[:, 7:9], then[:, :2], atol=1e-4)


def test_depth_knows_nothing_of_the_bev_matrix(made_frames: Frames, augmented: Batch) -> None:
    """The same draws of the images, with and without those of the BEV space."""
    still = CONFIG.model_copy(update={"bev_augment": StudentBevAugmentConfig()})
    dataset = StudentDataset(made_frames, still, times=2, with_depth=True)
    dataset._bev_matrix = StudentDataset(made_frames, CONFIG)._bev_matrix  # draws as many numbers
    depth = torch.cat([dataset[SampleDraw(index=1, seed=(seed,))].require_depth_m() for seed in SEEDS])
    assert torch.equal(depth, augmented.require_depth_m())


def test_the_past_meets_the_present(made_frames: Frames, augmented: Batch) -> None:
    """A static object in the earlier augmented map is aligned to its augmented position in the current one."""
    to_previous = torch.linalg.inv(augmented.to_current[:, 1])
    place = torch.tensor([3.3, 5.1, 0.0, 1.0])
    before = augmented.bev_matrix @ to_previous @ place
    now = augmented.bev_matrix @ place
    maps = torch.zeros(len(SEEDS), 1, *GRID.shape)
    cells, inside = cells_of_points(before[:, :3], GRID, (-5.0, 5.0))
    assert inside.all()
    maps.flatten(1)[range(len(SEEDS)), cells] = 1.0
    aligned = align(maps, GRID, augmented.to_current[:, 1], augmented.bev_matrix)
    for sample in SEEDS:
        weights = aligned[sample, 0] / aligned[sample, 0].sum()
        centre = (weights[..., None] * torch.from_numpy(GRID.centers_m()).float()).sum((0, 1))
        assert (centre - now[sample, :2]).abs().max() < 0.8


def test_a_teachers_peak_lies_on_the_augmented_box(augmented: Batch, plain: Batch) -> None:
    """Peaks where the boxes are in the view that was read end up where the boxes are in the student's space."""
    (teacher,) = augmented.teachers
    to_view = to_teacher(GRID, GRID, teacher.view_matrix, augmented.bev_matrix, augmented.lidar_to_ego)
    assert to_view is not None
    boxes = plain.boxes[0]
    for sample in SEEDS:
        transformed = torch.from_numpy(transform_boxes(boxes.numpy(), teacher.view_matrix[sample].double().numpy()))
        cells, inside = cells_of_points(transformed[:, :3], GRID, (-50.0, 50.0))
        maps = torch.zeros(1, len(boxes), *GRID.shape)
        maps[0].flatten(1)[torch.arange(len(boxes))[inside], cells[inside]] = 1.0
        warped = warp_max(maps, GRID, GRID, to_view[sample : sample + 1]).features[0]
        for box, peak in zip(augmented.boxes[sample][inside], warped[inside], strict=True):
            rows, columns = peak.nonzero().unbind(1)
            shown = torch.from_numpy(GRID.to_metres(torch.stack([columns, rows], dim=1).double().numpy() + 0.5))
            if len(shown):  # a box at the edge may leave the student's range
                assert (shown - box[:2]).norm(dim=1).min() < 0.8
