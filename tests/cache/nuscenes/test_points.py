"""Points of a frame: by hand, and against mmdet3d's own loading."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from cache.errors import DataError
from cache.nuscenes.frame import Frame, Sweep
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import camera_points, load_points
from cache.spec import PointPipeline

QUARTER_TURN = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]], dtype=np.float64)


def write_sweep(path: Path, points: list[list[float]]) -> Path:
    np.asarray(points, dtype=np.float32).tofile(path)
    return path


def frame_of(*sweeps: Sweep) -> Frame:
    """A frame of which only the sweeps matter."""
    return Frame(
        token="t",
        scene="s",
        timestamp_us=0,
        sweeps=sweeps,
        cameras=(),
        boxes=np.zeros((0, 9), np.float32),
        labels=np.zeros(0, np.int64),
        lidar_to_ego=np.eye(4),
        ego_to_global=np.eye(4),
        previous=None,
    )


@dataclass(frozen=True)
class Rotations:
    """A key frame's rotation with a near and a far point, and an older one that the car has since turned away from."""

    key: Sweep
    past: Sweep


@pytest.fixture
def rotations(tmp_path: Path) -> Rotations:
    key = write_sweep(tmp_path / "key.bin", [[0.5, 0.5, 0, 7, 3], [5, 6, 1, 200, 31]])
    past = write_sweep(tmp_path / "past.bin", [[0.5, -0.9, 0, 1, 1], [1, 0, 0, 2, 2], [0, -4, 2, 3, 3]])
    return Rotations(Sweep(path=key, to_key=np.eye(4), lag_s=0.0), Sweep(path=past, to_key=QUARTER_TURN, lag_s=0.05))


def test_past_points_move_to_the_key_frame_and_carry_their_lag(rotations: Rotations) -> None:
    points = load_points(frame_of(rotations.key, rotations.past), PointPipeline(past_sweeps=1))
    assert points.dtype == np.float32
    np.testing.assert_allclose(
        points,
        [
            [0.5, 0.5, 0, 7, 0],  # The key frame's own near points stay; its rings become a lag of 0.
            [5, 6, 1, 200, 0],
            [10, 21, 30, 2, 0.05],  # (1, 0, 0) turned by 90 degrees is (0, 1, 0); |x| = 1 is not below 1: it stays.
            [14, 20, 32, 3, 0.05],  # (0, -4, 2) turned is (4, 0, 2).
        ],
        rtol=1e-6,
    )


@pytest.mark.parametrize(("remove_close_m", "kept"), [(0.0, 3), (1.0, 2), (2.0, 1)])
def test_near_means_along_x_and_along_y(rotations: Rotations, remove_close_m: float, kept: int) -> None:
    pipeline = PointPipeline(past_sweeps=1, remove_close_m=remove_close_m)
    assert len(load_points(frame_of(rotations.key, rotations.past), pipeline)) == 2 + kept


def test_the_newest_sweeps_are_taken(rotations: Rotations) -> None:
    older = replace(rotations.past, lag_s=0.1)
    frame = frame_of(rotations.key, rotations.past, older)
    assert set(load_points(frame, PointPipeline(past_sweeps=1))[:, 4]) == {np.float32(0), np.float32(0.05)}
    assert len(load_points(frame, PointPipeline(past_sweeps=0))) == 2


def test_missing_sweeps_are_padded_only_where_there_is_none(rotations: Rotations) -> None:
    alone = frame_of(rotations.key)
    padded = load_points(alone, PointPipeline(past_sweeps=3))
    np.testing.assert_array_equal(padded[:, 0], [0.5, 5, 5, 5, 5])  # The near point is not repeated.
    assert len(load_points(alone, PointPipeline(past_sweeps=3, pad_empty_sweeps=False))) == 2
    assert len(load_points(frame_of(rotations.key, rotations.past), PointPipeline(past_sweeps=3))) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short.*got 0 bytes"),
        (np.ones(7, np.float32).tobytes(), "cut short.*got 28 bytes.*20 for each point"),
        (np.ones(10, np.float32).tobytes() + b"\x00\x00", "cut short.*got 42 bytes"),
        (np.array([1, 1, 1, 1, 1, 2, np.nan, 2, 2, 2], np.float32).tobytes(), "not finite.*point 1: .*nan"),
        (np.array([np.inf, 1, 1, 1, 1], np.float32).tobytes(), "not finite.*point 0: .*inf"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_points(frame_of(Sweep(path=path, to_key=np.eye(4), lag_s=0.0)), PointPipeline())
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a LiDAR file is missing .*nowhere\.bin"):
        load_points(frame_of(Sweep(path=tmp_path / "nowhere.bin", to_key=np.eye(4), lag_s=0.0)), PointPipeline())


def mmdet3d_points(frame: Frame, sweeps_num: int) -> np.ndarray:
    """The same frame through mmdet3d's LoadPointsFromFile and LoadPointsFromMultiSweeps."""
    loading = pytest.importorskip("mmdet3d.datasets.transforms.loading")
    columns = [0, 1, 2, 3, 4]
    results = {"lidar_points": {"lidar_path": str(frame.sweeps[0].path)}, "timestamp": 0.0}
    if len(frame.sweeps) > 1:
        results["lidar_sweeps"] = [
            {"lidar_points": {"lidar_path": str(s.path), "lidar2sensor": lidar_to_sensor(s)}, "timestamp": -s.lag_s}
            for s in frame.sweeps[1:]
        ]
    own = loading.LoadPointsFromFile(coord_type="LIDAR", load_dim=5, use_dim=columns)
    past = loading.LoadPointsFromMultiSweeps(
        sweeps_num=sweeps_num, use_dim=columns, pad_empty_sweeps=True, remove_close=True, test_mode=True
    )
    return past.transform(own.transform(results))["points"].tensor.numpy()


def lidar_to_sensor(sweep: Sweep) -> list:
    """As mmdet3d's nuScenes converter writes it."""
    rotation, shift = sweep.to_key[:3, :3], sweep.to_key[:3, 3:]
    return np.vstack([np.hstack([rotation.T, -rotation.T @ shift]), [[0, 0, 0, 1]]]).tolist()


def test_the_real_frame_is_loaded_as_mmdet3d_does(real_frames: Frames) -> None:
    frame = real_frames[0]
    ours = load_points(frame, PointPipeline(past_sweeps=9))
    assert ours.shape == (272_414, 5)
    np.testing.assert_array_equal(ours, mmdet3d_points(frame, sweeps_num=9))


def test_past_sweeps_are_loaded_as_mmdet3d_does(real_frames: Frames) -> None:
    """Where the car drives straight on; the next test has a bend."""
    forward = np.eye(4)
    forward[:3, 3] = [0.1, -2.5, 0.02]
    key = real_frames[0].sweeps[0]
    frame = frame_of(key, *(Sweep(path=key.path, to_key=forward, lag_s=lag) for lag in (0.05, 0.1, 0.15)))
    ours, theirs = load_points(frame, PointPipeline(past_sweeps=2)), mmdet3d_points(frame, sweeps_num=2)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_in_a_bend_mmdet3d_turns_the_shift_once_too_often(rotations: Rotations) -> None:
    """mmdet3d 1.x takes x to R x + R^T t where R x + t is meant (`lidar2sensor` holds -R^T t): ours is R x + t."""
    turn = Quaternion(axis=(0, 0, 1), degrees=5).rotation_matrix
    shift = np.array([0.0, -5.0, 0.0])
    past = replace(rotations.past, to_key=np.vstack([np.c_[turn, shift], [[0, 0, 0, 1]]]))
    frame = frame_of(rotations.key, past)
    ours, theirs = load_points(frame, PointPipeline(past_sweeps=1)), mmdet3d_points(frame, sweeps_num=1)
    np.testing.assert_allclose(ours[3, :3], turn @ [0, -4, 2] + shift, atol=1e-5)
    np.testing.assert_allclose(theirs[3, :3], turn @ [0, -4, 2] + turn.T @ shift, atol=1e-5)


def test_points_beside_the_image_are_left_out(made_frames: Frames) -> None:
    frame = made_frames[0]
    for camera, points in zip(frame.cameras, camera_points(frame, nearest_m=1.0), strict=True):
        height, width = camera.size
        assert len(points) > 100
        assert ((points >= (-0.5, -0.5, 1.0)) & (points < (width - 0.5, height - 0.5, np.inf))).all()


def test_four_columns_whose_size_divides_by_five_are_refused(tmp_path: Path) -> None:
    """x, y, z and intensity of 1,000 points are 800 points of five columns, with x, y and z among the intensities."""
    points = np.random.default_rng(0).normal(0, [20, 20, 2, 0], (1000, 4)).astype(np.float32)
    points[:, 3] = 30
    path = tmp_path / "four.bin"
    path.write_bytes(points.tobytes())
    with pytest.raises(DataError, match=r"does not seem to have five columns .*an intensity below 0 in \d+ of 800"):
        load_points(frame_of(Sweep(path=path, to_key=np.eye(4), lag_s=0.0)), PointPipeline())
