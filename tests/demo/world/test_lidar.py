"""What the LiDAR measures is where the geometry says it is."""

import numpy as np
import pytest

from demo.world.camera import CAMERAS, camera_rays, render
from demo.world.config import WorldConfig
from demo.world.lidar import POSITION_M, count_points_in_boxes, simulate_sweep
from demo.world.scene import Scene
from tests.factories.scenes import cube, stage

EXACT = WorldConfig(lidar_noise_m=0.0, lidar_azimuths=720)


def sweep(scene: Scene, world: WorldConfig = EXACT, time_s: float = 0.0) -> np.ndarray:
    return simulate_sweep(scene, time_s, world, np.random.default_rng(0))


def count(scene: Scene, points: np.ndarray) -> list[int]:
    boxes = np.asarray([actor.box_m for actor in scene.actors])
    return count_points_in_boxes(points, boxes, scene.poses_in_ego(0.0)).tolist()


def test_rings_on_flat_ground() -> None:
    points = sweep(stage())
    assert points.dtype == np.float32
    lowest = points[points[:, 4] == 0]
    # The lowest beam looks down by 30 degrees from 1.84 m.
    assert np.hypot(lowest[:, 0], lowest[:, 1]) == pytest.approx(1.84 / np.tan(np.pi / 6), rel=1e-5)
    assert points[:, 2] == pytest.approx(-1.84, abs=1e-5)
    assert len(lowest) == EXACT.lidar_azimuths
    assert np.hypot(points[:, 0], points[:, 1]).max() < EXACT.lidar_range_m


def test_forward_is_the_sensors_y_and_right_its_x() -> None:
    points = sweep(stage(cube(10.0, left_m=-3.0)))
    x, y = points[points[:, 2] > -1.8, :2].T
    # The box spans 8 .. 12 m ahead of the rear axle and 2 .. 4 m to the right of it.
    assert (y.min(), y.max()) == pytest.approx((8.0 - POSITION_M[0], 12.0 - POSITION_M[0]), abs=0.5)
    assert y.min() >= 8.0 - POSITION_M[0] - 1e-4
    assert x.min() == pytest.approx(2.0, abs=1e-4)
    assert x.max() <= 4.0 + 1e-4


def test_counts_are_those_of_the_solid() -> None:
    scene = stage(cube(10.0, size_m=(4.0, 2.0, 1.5)))
    points = sweep(scene)
    on_solid = int((points[:, 2] > -1.8399).sum())
    assert count(scene, points)[0] >= on_solid > 50


def test_noise_stays_within_the_box() -> None:
    scene = stage(cube(10.0))
    exact, noisy = sweep(scene), sweep(scene, WorldConfig(lidar_azimuths=720))
    raised = noisy[:, 2] > -1.75
    assert len(exact) == len(noisy)
    assert not np.array_equal(exact, noisy)
    assert count(scene, noisy[raised])[0] == raised.sum()


def test_a_box_that_is_hidden_loses_its_points() -> None:
    small, wall = cube(20.0, size_m=(1.0, 1.0, 1.0)), cube(8.0, size_m=(1.0, 6.0, 3.0))
    in_the_open, hidden = stage(small), stage(small, wall)
    assert count(in_the_open, sweep(in_the_open))[0] > 4
    assert count(hidden, sweep(hidden))[0] == 0


def test_a_box_behind_meets_the_seam_of_the_rotation() -> None:
    scene = stage(cube(-10.0))
    x = (points := sweep(scene))[points[:, 2] > -1.8, 0]
    assert (x.min(), x.max()) == pytest.approx((-1.0, 1.0), abs=0.15)


def test_intensity_is_the_materials() -> None:
    points = sweep(stage(cube(10.0, size_m=(4.0, 4.0, 3.0))))
    front = points[(points[:, 2] > -1.0) & (np.abs(points[:, 0]) < 0.2) & (points[:, 1] < 7.1)]
    # Half of the light comes back at normal incidence, the cosine of it elsewhere.
    incidence = front[:, 1] / np.linalg.norm(front[:, :3], axis=1)
    assert front[:, 3] == pytest.approx(255 * 0.5 * incidence, rel=1e-4)
    assert ((points[:, 3] >= 0) & (points[:, 3] <= 255)).all()


def test_cameras_see_the_geometry_that_the_lidar_hits(scenes: list[Scene]) -> None:
    scene, size = scenes[0], (450, 800)
    points = sweep(scene)
    ego = np.stack([points[:, 1] + POSITION_M[0], -points[:, 0], points[:, 2] + POSITION_M[2]], axis=1)
    on_objects = ego[ego[:, 2] > 0.1]
    agree, total = 0, 0
    for camera in CAMERAS:
        depth = render(scene, 0.0, camera, size).hits.depth
        seen = (on_objects - camera.position_m) @ camera.rotation
        ahead = seen[seen[:, 2] > 0.5]
        columns, rows = (ahead @ camera.intrinsics(size).T / ahead[:, 2:])[:, :2].T
        inside = (columns >= 0) & (columns < size[1]) & (rows >= 0) & (rows < size[0])
        found = depth[rows[inside].astype(int), columns[inside].astype(int)]
        agree += int((np.abs(found - ahead[inside, 2]) < 0.02 * ahead[inside, 2]).sum())
        total += int(inside.sum())
    # The rest are points that something hides from a camera, which is lower than the LiDAR, and pixels at edges.
    assert total > 1000
    assert agree / total > 0.85


def test_rays_of_a_camera_are_shared() -> None:
    assert camera_rays(CAMERAS[0], (90, 160)) is camera_rays(CAMERAS[0], (90, 160))
