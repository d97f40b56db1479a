import numpy as np
import pytest

from cache.nuscenes.frames import Frames
from cache.nuscenes.points import KEY_SWEEP_ONLY, load_points
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset
from student.data.depth_map import depth_map

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
