import numpy as np
import pytest

from cache.nuscenes.frames import Frames
from cache.nuscenes.points import KEY_SWEEP_ONLY, camera_points, load_points
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset
from student.data.depth_map import depth_map, in_bev, nearest_points

CONFIG = StudentConfig.model_validate({"image": {"size": (128, 352)}, "detector": {"image_stride": 16}})


def test_depth_is_the_nearest_point_of_a_patch(made_frames: Frames) -> None:
    frame, camera_index = made_frames[0], 1
    sample = StudentDataset(made_frames, CONFIG, with_depth=True)[0]
    matrix = sample.image_matrix[0, 0, camera_index].double().numpy()
    depth = sample.require_depth_m()[0, camera_index].numpy()
    camera = frame.cameras[camera_index]
    expected: dict[tuple[int, int], float] = {}
    for point in load_points(frame, KEY_SWEEP_ONLY)[:, :3].astype(np.float64):
        x, y, z = np.linalg.solve(camera.to_lidar, [*point, 1])[:3]
        if z <= 1:
            continue
        u, v, _ = matrix @ camera.intrinsics @ (x / z, y / z, 1)
        row, column = int((v + 0.5) // 16), int((u + 0.5) // 16)
        if 0 <= row < 8 and 0 <= column < 22:
            expected[row, column] = min(z, expected.get((row, column), np.inf))
    assert len(expected) > 50
    assert (depth > 0).sum() == len(expected)
    for place, z in expected.items():
        assert depth[place] == pytest.approx(z, rel=1e-5)


def test_a_map_by_hand() -> None:
    """Two points in one patch, one in another, one moved out of the input by the augmentation."""
    config = StudentConfig.model_validate({"image": {"size": (16, 32)}, "detector": {"image_stride": 8}})
    points = np.array([[0.0, 0.0, 9.0], [3.0, 3.0, 4.0], [10.0, 7.0, 20.0], [-1.0, 2.0, 1.5]])
    twice = np.diag([2.0, 2.0, 1.0])
    expected = [[4.0, 0, 0, 0], [0, 0, 20.0, 0]]
    np.testing.assert_array_equal(depth_map([points], [twice], config), [expected])


def test_the_points_behind_the_depths_by_hand() -> None:
    config = StudentConfig.model_validate({"image": {"size": (16, 32)}, "detector": {"image_stride": 8}})
    points = np.array([[0.0, 0.0, 9.0], [3.0, 3.0, 4.0], [10.0, 7.0, 20.0], [-1.0, 2.0, 1.5]])
    twice = np.diag([2.0, 2.0, 1.0])
    found = nearest_points([points], [twice], config)
    np.testing.assert_array_equal(found[..., 2], depth_map([points], [twice], config))
    assert found[0, 0, 0].tolist() == [3.0, 3.0, 4.0]
    assert found[0, 1, 2].tolist() == [10.0, 7.0, 20.0]


def test_the_points_behind_the_depths_lie_where_the_lidar_saw_them(made_frames: Frames) -> None:
    """In the BEV frame of a draw that turns by 90 degrees and is 1.05 times as large."""
    frame = made_frames[0]
    points, matrices = camera_points(frame, 1.0), [np.eye(3)] * len(frame.cameras)
    size = frame.cameras[0].size
    config = StudentConfig.model_validate({"image": {"size": size}, "detector": {"image_stride": 16}})
    bev = np.diag([1.05, 1.05, 1.05, 1.0]) @ np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nearest = nearest_points(points, matrices, config)
    places = in_bev(nearest, frame.cameras, bev)[nearest[..., 2] > 0]
    cloud = load_points(frame, KEY_SWEEP_ONLY)[:, :3].astype(np.float64) @ bev[:3, :3].T
    distances = np.linalg.norm(places[:20, None] - cloud[None], axis=-1).min(axis=1)
    assert distances.max() < 1e-4
