"""The tables of a tiny world, read with nuscenes-devkit."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, view_points
from pyquaternion import Quaternion

from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.spec import CLASSES, PointPipeline
from demo.world.camera import CAMERAS, render
from demo.world.ray_casting import Solids
from demo.world.scene import Scene
from demo.world.tables import VISIBILITIES
from tests.factories.scenes import TINY


def annotations(tables: NuScenes, sample: dict) -> list[dict]:
    return [tables.get("sample_annotation", token) for token in sample["anns"]]


def actor_of(annotation: dict, poses: np.ndarray) -> int:
    """The actor that stands where the annotation says."""
    distance = np.linalg.norm(poses[:, :2] - annotation["translation"][:2], axis=1)
    assert distance.min() < 1e-6
    return int(distance.argmin())


def samples_of(tables: NuScenes, scene: Scene) -> list[dict]:
    record = next(record for record in tables.scene if record["name"] == scene.name)
    return [sample for sample in tables.sample if sample["scene_token"] == record["token"]]


def test_thirteen_tables_and_files_that_exist(tables: NuScenes, made: Path) -> None:
    assert all(getattr(tables, name) for name in tables.table_names)
    assert len(tables.table_names) == 13
    assert all((made / record["filename"]).is_file() for record in tables.sample_data + tables.map)


def test_splits_and_the_ten_classes_in_both(made: Path) -> None:
    for split in ("mini_train", "mini_val"):
        frames = Frames(root=made, version="v1.0-mini", splits=(split,))
        assert len(frames) == 3
        labels = np.concatenate([frame.labels for frame in frames])
        assert set(labels.tolist()) == set(range(len(CLASSES)))


def test_the_official_evaluation_loads_the_ground_truth(tables: NuScenes) -> None:
    assert len(load_gt(tables, "mini_val", DetectionBox).all) > 50


def test_chains_of_samples_and_sweeps(tables: NuScenes) -> None:
    for scene in tables.scene:
        sample = tables.get("sample", scene["first_sample_token"])
        data = tables.get("sample_data", sample["data"]["LIDAR_TOP"])
        assert data["prev"]
        lags = []
        key = data
        while data["prev"]:
            data = tables.get("sample_data", data["prev"])
            assert not data["is_key_frame"]
            assert data["filename"].startswith("sweeps/LIDAR_TOP/")
            assert data["sample_token"] == sample["token"]
            lags.append(key["timestamp"] - data["timestamp"])
        assert lags == [50_000, 100_000]
        steps = [sample["timestamp"]]
        while sample["next"]:
            sample = tables.get("sample", sample["next"])
            steps.append(sample["timestamp"])
        assert np.diff(steps).tolist() == [500_000] * (TINY.key_frames - 1)
        assert sample["token"] == scene["last_sample_token"]


def test_points_within_boxes_are_num_lidar_pts(tables: NuScenes, made: Path) -> None:
    for sample in tables.sample:
        data = tables.get("sample_data", sample["data"]["LIDAR_TOP"])
        pose, mount = (
            tables.get("ego_pose", data["ego_pose_token"]),
            tables.get("calibrated_sensor", data["calibrated_sensor_token"]),
        )
        points = LidarPointCloud.from_file(str(made / data["filename"])).points[:3].astype(np.float64)
        for record in (mount, pose):
            turn = Quaternion(record["rotation"]).rotation_matrix
            points = turn @ points + np.asarray(record["translation"])[:, None]
        for annotation in annotations(tables, sample):
            inside = points_in_box(tables.get_box(annotation["token"]), points).sum()
            assert inside == annotation["num_lidar_pts"]


def test_frames_and_points_agree_with_the_tables(made: Path, tables: NuScenes) -> None:
    for frame in Frames(root=made, version="v1.0-mini", splits=("mini_train", "mini_val")):
        points = load_points(frame, PointPipeline(past_sweeps=0))
        counts = [inside(points, box).sum() for box in frame.boxes]
        records = annotations(tables, tables.get("sample", frame.token))
        expected = [record["num_lidar_pts"] for record in records if record["num_lidar_pts"]]
        # Boxes are float32 there: a point on the very surface may fall to either side.
        assert counts == pytest.approx(expected, abs=1)


def inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    x, y, z, dx, dy, dz, yaw = box[:7]
    along = np.cos(yaw) * (points[:, 0] - x) + np.sin(yaw) * (points[:, 1] - y)
    across = np.cos(yaw) * (points[:, 1] - y) - np.sin(yaw) * (points[:, 0] - x)
    height = points[:, 2] - z
    return (np.abs(along) <= dx / 2) & (np.abs(across) <= dy / 2) & (height >= 0) & (height <= dz)


def test_past_sweeps_lie_on_the_objects_where_they_were(made: Path) -> None:
    shares: dict[bool, list[float]] = {False: [], True: []}
    for frame in Frames(root=made, version="v1.0-mini", splits=("mini_train", "mini_val")):
        points = load_points(frame, PointPipeline(past_sweeps=2))
        for box in frame.boxes:
            # Above the ground, which every box stands on.
            raised = points[points[:, 2] > box[2] + 0.1]
            now, past = (raised[np.abs(raised[:, 4] - lag_s) < 1e-4] for lag_s in (0.0, 0.1))
            moves = bool(np.hypot(*box[7:9]) > 2)
            then = box.copy()
            then[:2] -= 0.1 * box[7:9]
            # A bend makes the mean velocity differ from the velocity by a few centimetres in 0.1 s.
            then[3:5] += 0.1 * moves
            if (own := inside(now, box).sum()) >= 20:
                shares[moves].append(inside(past, then).sum() / own)
    assert min(map(len, shares.values())) > 3
    assert {moves: np.median(values) for moves, values in shares.items()} == pytest.approx({False: 1, True: 1}, abs=0.1)


def test_velocity_is_that_of_the_motion(tables: NuScenes, scenes: list[Scene]) -> None:
    speeds = []
    for scene in scenes:
        for frame, sample in enumerate(samples_of(tables, scene)):
            poses = scene.poses(frame * 0.5)
            rates = (scene.poses(frame * 0.5 + 1e-3) - scene.poses(frame * 0.5 - 1e-3))[:, :2] / 2e-3
            for annotation in annotations(tables, sample):
                velocity = tables.box_velocity(annotation["token"])
                if np.isnan(velocity).any():
                    continue
                actor = actor_of(annotation, poses)
                exact = rates[actor]
                # At the ends the devkit takes a one-sided difference, over which the road bends.
                assert velocity[:2] == pytest.approx(exact, abs=0.02 + 0.03 * np.hypot(*exact))
                assert velocity[2] == 0
                speeds.append(np.hypot(*exact))
    assert min(speeds) == 0
    assert max(speeds) > 3


def test_ego_poses_follow_the_road(tables: NuScenes, scenes: list[Scene]) -> None:
    for scene in scenes:
        records = [
            tables.get("ego_pose", data["ego_pose_token"])
            for data in tables.sample_data
            if data["channel"] == "LIDAR_TOP" and scene.name in data["filename"]
        ]
        for before, after in pairwise(records):
            step = np.subtract(after["translation"], before["translation"])
            seconds = (after["timestamp"] - before["timestamp"]) * 1e-6
            assert np.linalg.norm(step) == pytest.approx(scene.ego_mps * seconds, rel=1e-3)
            heading = Quaternion(before["rotation"]).rotation_matrix[:, 0]
            assert heading @ step / np.linalg.norm(step) > 0.999
        assert np.hypot(*records[0]["translation"][:2]) > 200


def test_attributes_are_those_of_the_class_and_of_the_motion(tables: NuScenes) -> None:
    for annotation in tables.sample_annotation:
        allowed = detection_name_to_rel_attributes(category_to_detection_name(annotation["category_name"]))
        names = [tables.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        assert len(names) == min(1, len(allowed))
        assert set(names) <= set(allowed)
        speed = np.nan_to_num(np.linalg.norm(tables.box_velocity(annotation["token"])))
        if names and not np.isnan(tables.box_velocity(annotation["token"])).any():
            still = {"vehicle.parked", "vehicle.stopped", "pedestrian.standing", "cycle.without_rider"}
            assert (speed == 0) == (names[0] in still)


def test_visibility_is_the_visible_share_of_the_pixels(tables: NuScenes, scenes: list[Scene]) -> None:
    assert [record["level"] for record in tables.visibility] == list(VISIBILITIES)
    scene = scenes[0]
    hits = [render(scene, 0.5, camera, TINY.image_size).hits for camera in CAMERAS]
    solids, poses = Solids.of(scene.actors, scene.poses_in_ego(0.5)), scene.poses(0.5)
    tokens = set()
    for annotation in annotations(tables, samples_of(tables, scene)[1]):
        actor = actor_of(annotation, poses)
        seen = sum(np.isin(hit.part, np.flatnonzero(solids.owner == actor)).sum() for hit in hits)
        alone = sum(hit.unoccluded[actor] for hit in hits)
        share = seen / alone if alone else 0.0
        low, high = (int(part) / 100 for part in VISIBILITIES[int(annotation["visibility_token"]) - 1][1:].split("-"))
        assert low <= share < high or share == high == 1
        tokens.add(annotation["visibility_token"])
    assert {"1", "4"} <= tokens


def test_an_objects_pixels_lie_within_its_projected_box(tables: NuScenes, scenes: list[Scene]) -> None:
    scene, sample = scenes[1], samples_of(tables, scenes[1])[2]
    solids, poses = Solids.of(scene.actors, scene.poses_in_ego(1.0)), scene.poses(1.0)
    checked = 0
    for camera in CAMERAS:
        part = render(scene, 1.0, camera, TINY.image_size).hits.part
        _, boxes, intrinsics = tables.get_sample_data(sample["data"][camera.name])
        for box in boxes:
            annotation = tables.get("sample_annotation", box.token)
            actor = actor_of(annotation, poses)
            rows, columns = np.nonzero(np.isin(part, np.flatnonzero(solids.owner == actor)))
            if (box.corners()[2] < 0.1).any() or not len(rows):
                continue
            u, v, _ = view_points(box.corners(), intrinsics, normalize=True)
            assert u.min() - 1 <= columns.min() <= columns.max() <= u.max()
            assert v.min() - 1 <= rows.min() <= rows.max() <= v.max()
            checked += 1
    assert checked > 5


def test_annotated_objects_are_in_range(made: Path) -> None:
    for frame in Frames(root=made, version="v1.0-mini", splits=("mini_train", "mini_val")):
        assert np.abs(frame.boxes[:, :2]).max() <= TINY.range_m + 1e-3
        assert frame.boxes[:, 2] == pytest.approx(-1.84, abs=1e-3)


def test_calibrations_turn_sensors_as_their_names_say(made: Path) -> None:
    frame = Frames(root=made, version="v1.0-mini", splits=("mini_train",))[0]
    assert frame.lidar_to_ego[:3, :3] @ [0, 1, 0] == pytest.approx([1, 0, 0], abs=1e-9)
    ahead = {camera.name: camera.to_lidar[:3, 2] for camera in frame.cameras}
    assert ahead["CAM_FRONT"] == pytest.approx([0, 1, 0], abs=1e-6)
    assert ahead["CAM_BACK"] == pytest.approx([0, -1, 0], abs=1e-6)
    assert ahead["CAM_FRONT_RIGHT"][0] > 0.8
    assert ahead["CAM_BACK_LEFT"][0] < -0.8
