"""nuScenes' tables -> frames: tiny tables with known numbers, and the real frame against mmdet3d's own converter."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pyquaternion import Quaternion

from cache.errors import ConfigError, DataError
from cache.nuscenes.frames import CAMERAS, Frame, Frames
from cache.spec import CLASSES

Tables = dict[str, list[dict]]

QUARTER_TURN = list(Quaternion(axis=(0, 0, 1), degrees=90).elements)
NO_TURN = [1.0, 0.0, 0.0, 0.0]
CAMERA_AXES = list(Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])).elements)
"""x right, y down, z forward, of a camera that looks along the car's x."""


@pytest.fixture
def tables() -> Tables:
    """Two key frames half a second apart, one rotation between them; the car, facing +y, drives 1 m along +y in each.

    The LiDAR sits 1 m before and 2 m above the rear axle, turned as the car. A car drives 10 m ahead at 2 m/s.
    """
    lidar = [
        sample_data("lidar0", "first", "LIDAR_TOP", "pose0", 0, prev=""),
        sample_data("lidar1", "second", "LIDAR_TOP", "pose1", 250_000, prev="lidar0", key=False),
        sample_data("lidar2", "second", "LIDAR_TOP", "pose2", 500_000, prev="lidar1"),
    ]
    images = [
        sample_data(f"{name} {sample}", sample, name, pose, time)
        for sample, pose, time in (("first", "pose0", 0), ("second", "pose2", 500_000))
        for name in CAMERAS
    ]
    return {
        "category": [
            {"token": name, "name": name}
            for name in ("vehicle.car", "human.pedestrian.adult", "animal", "movable_object.trafficcone")
        ],
        "attribute": [],
        "visibility": [],
        "instance": [
            {"token": "the car", "category_token": "vehicle.car"},
            {"token": "a cone", "category_token": "movable_object.trafficcone"},
            {"token": "unseen", "category_token": "human.pedestrian.adult"},
            {"token": "a dog", "category_token": "animal"},
        ],
        "sensor": [
            {"token": name, "channel": name, "modality": "lidar" if name == "LIDAR_TOP" else "camera"}
            for name in ("LIDAR_TOP", *CAMERAS)
        ],
        "calibrated_sensor": [
            {
                "token": name,
                "sensor_token": name,
                "translation": [1.0, 0.0, 2.0] if name == "LIDAR_TOP" else [1.5, 0.25, 1.5],
                "rotation": NO_TURN if name == "LIDAR_TOP" else CAMERA_AXES,
                "camera_intrinsic": [] if name == "LIDAR_TOP" else [[500, 0, 400], [0, 500, 225], [0, 0, 1]],
            }
            for name in ("LIDAR_TOP", *CAMERAS)
        ],
        "ego_pose": [
            {"token": f"pose{i}", "translation": [100.0, 200.0 + i, 0.0], "rotation": QUARTER_TURN} for i in range(3)
        ],
        "log": [],
        "scene": [{"token": "scene", "name": "scene-0061"}],
        "sample": [
            {"token": "first", "scene_token": "scene", "timestamp": 0, "prev": "", "next": "second"},
            {"token": "second", "scene_token": "scene", "timestamp": 500_000, "prev": "first", "next": ""},
        ],
        "sample_data": lidar + images,
        "sample_annotation": [
            annotation("car first", "first", "the car", (100, 211, 1), QUARTER_TURN, next="car second"),
            annotation("car second", "second", "the car", (100, 212, 1), QUARTER_TURN, prev="car first"),
            annotation("cone", "second", "a cone", (97, 203, 0.5), NO_TURN),
            annotation("person", "second", "unseen", (90, 210, 1), NO_TURN, lidar_points=0),
            annotation("dog", "second", "a dog", (100, 205, 0.5), NO_TURN),
        ],
        "map": [{"token": "map", "log_tokens": [], "category": "semantic_prior", "filename": "map.png"}],
    }  # fmt: skip


def sample_data(
    token: str, sample: str, sensor: str, pose: str, time_us: int, prev: str = "", key: bool = True
) -> dict:
    height, width = (0, 0) if sensor == "LIDAR_TOP" else (450, 800)
    return {
        "token": token, "sample_token": sample, "calibrated_sensor_token": sensor, "ego_pose_token": pose,
        "timestamp": time_us, "filename": f"{sensor}/{token}", "fileformat": "", "is_key_frame": key,
        "height": height, "width": width, "prev": prev, "next": "",
    }  # fmt: skip


def annotation(
    token: str,
    sample: str,
    instance: str,
    center: tuple[float, float, float],
    rotation: list[float],
    lidar_points: int = 5,
    prev: str = "",
    next: str = "",
) -> dict:
    return {
        "token": token, "sample_token": sample, "instance_token": instance, "visibility_token": "",
        "attribute_tokens": [], "translation": center, "size": [2.0, 4.0, 1.5], "rotation": rotation,
        "num_lidar_pts": lidar_points, "num_radar_pts": 0, "prev": prev, "next": next,
    }  # fmt: skip


def write(root: Path, tables: Tables) -> Path:
    folder = root / "v1.0-mini"
    folder.mkdir()
    (root / "map.png").touch()  # The devkit insists that it is there.
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


def mini_train(root: Path, **options: int) -> Frames:
    return Frames(root=root, version="v1.0-mini", splits=("mini_train",), **options)


@pytest.fixture
def frame(tmp_path: Path, tables: Tables) -> Frame:
    """The second key frame."""
    return mini_train(write(tmp_path, tables))[1]


def test_frames_come_in_order_and_by_token(tmp_path: Path, tables: Tables) -> None:
    frames = mini_train(write(tmp_path, tables))
    assert frames.tokens == ("first", "second")
    assert len(frames) == 2
    assert [frame.token for frame in frames] == ["first", "second"]
    assert frames["second"].previous == "first"
    assert frames[0].previous is None
    assert (frames[1].scene, frames[1].timestamp_us) == ("scene-0061", 500_000)


def test_boxes_are_in_the_lidar_frame(frame: Frame) -> None:
    """The car's y is the LiDAR's x; z is the bottom; a person without points and an animal are left out."""
    assert [CLASSES[label] for label in frame.labels] == ["car", "traffic_cone"]
    # At 212 - (202 + 1) = 9 m ahead; 1 m up less the sensor's 2 m less half of 1.5 m; turned as the car: yaw 0.
    np.testing.assert_allclose(frame.boxes[0], [9, 0, -1.75, 4, 2, 1.5, 0, 2, 0], atol=1e-5)
    # 3 m to the left, level with the LiDAR, turned by -90 degrees; alone, so of unknown velocity.
    np.testing.assert_allclose(frame.boxes[1], [0, 3, -2.25, 4, 2, 1.5, -np.pi / 2, 0, 0], atol=1e-5)
    assert frame.boxes.dtype == np.float32


def test_boxes_of_a_split_without_annotations_are_empty(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"] = []
    tables["instance"] = []
    assert mini_train(write(tmp_path, tables))[0].boxes.shape == (0, 9)


def test_sweeps_go_back_in_time(frame: Frame, tmp_path: Path) -> None:
    assert [sweep.path.name for sweep in frame.sweeps] == ["lidar2", "lidar1", "lidar0"]
    np.testing.assert_allclose([sweep.lag_s for sweep in frame.sweeps], [0, 0.25, 0.5])
    for behind_m, sweep in enumerate(frame.sweeps):
        expected = np.eye(4)
        expected[0, 3] = -behind_m  # The car has moved on by so much: what was at x is now nearer.
        np.testing.assert_allclose(sweep.to_key, expected, atol=1e-9)
    assert len(mini_train(tmp_path, max_sweeps=1)[1].sweeps) == 2


def test_cameras_know_where_they_look(frame: Frame, tmp_path: Path) -> None:
    assert tuple(camera.name for camera in frame.cameras) == CAMERAS
    camera = frame.cameras[1]
    assert (camera.size, camera.path) == ((450, 800), tmp_path / "CAM_FRONT" / "CAM_FRONT second")
    np.testing.assert_allclose(camera.intrinsics, [[500, 0, 400], [0, 500, 225], [0, 0, 1]])
    # A point 4 m before the camera, 1 m to its right and 0.5 m below: 4.5 m before the LiDAR (0.5 m behind it).
    np.testing.assert_allclose(camera.to_lidar @ [1, 0.5, 4, 1], [4.5, -0.75, -1, 1], atol=1e-9)


def test_lidar_to_global(frame: Frame) -> None:
    np.testing.assert_allclose(frame.lidar_to_ego @ [0, 0, 0, 1], [1, 0, 2, 1])
    np.testing.assert_allclose(frame.lidar_to_global @ [9, 0, -1, 1], [100, 212, 1, 1], atol=1e-9)


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tables are missing .*got no such folder; expected v1\.0-mini/"):
        mini_train(tmp_path / "nowhere")
    (tmp_path / "v1.0-trainval").mkdir()
    with pytest.raises(DataError, match=r"got \['v1\.0-trainval'\]; expected v1\.0-mini/"):
        mini_train(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", None])
def test_a_broken_table_is_said_to_be_one(tmp_path: Path, tables: Tables, content: str | None) -> None:
    broken = write(tmp_path, tables) / "v1.0-mini" / "sample.json"
    if content is None:
        broken.unlink()
    else:
        broken.write_text(content)
    with pytest.raises(DataError, match=r"a nuScenes table cannot be read .*v1\.0-mini\); got \w+Error: "):
        mini_train(tmp_path)


def test_splits_are_checked(tmp_path: Path, tables: Tables) -> None:
    root = write(tmp_path, tables)
    with pytest.raises(ConfigError, match=r"unknown split; got mini; expected some of .*mini_train"):
        Frames(root=root, version="v1.0-mini", splits=("mini",))
    with pytest.raises(DataError, match=r"the split holds no key frame .*mini_val.*got scenes scene-0061"):
        Frames(root=root, version="v1.0-mini", splits=("mini_val",))
    with pytest.raises(DataError, match="no split named"):
        Frames(root=root, version="v1.0-mini", splits=())


def test_a_camera_without_image_is_named(tmp_path: Path, tables: Tables) -> None:
    tables["sample_data"] = [data for data in tables["sample_data"] if data["token"] != "CAM_BACK second"]
    with pytest.raises(DataError, match=r"no image of a camera \(token second\).*expected CAM_BACK"):
        mini_train(write(tmp_path, tables))[1]


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    """mmdet3d's nuScenes converter, which its wheel carries as a tool."""
    mmdet3d = pytest.importorskip("mmdet3d")
    path = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters" / "nuscenes_converter.py"
    spec = importlib.util.spec_from_file_location("nuscenes_converter", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_real_boxes_are_those_of_mmdet3d(real_frames: Frames, converter: ModuleType) -> None:
    (info,), _ = converter._fill_trainval_infos(real_frames.tables, {real_frames.tables.scene[0]["token"]}, set())
    known = np.isin(info["gt_names"], CLASSES) & info["valid_flag"]
    frame = real_frames[0]
    assert [CLASSES[label] for label in frame.labels] == info["gt_names"][known].tolist()
    theirs = info["gt_boxes"][known]
    theirs[:, 2] -= theirs[:, 5] / 2  # The converter's z is the centre's.
    np.testing.assert_allclose(frame.boxes[:, :6], theirs[:, :6], atol=1e-4)
    # It reads yaw off another entry of the rotation matrix, which matters where the LiDAR leans: below 0.3 degrees.
    turn = np.angle(np.exp(1j * (frame.boxes[:, 6] - theirs[:, 6])))
    assert np.abs(turn).max() < 5e-3
    np.testing.assert_allclose(frame.boxes[:, 7:], np.nan_to_num(info["gt_velocity"][known]), atol=0.02)


def test_a_past_rotation_is_placed_as_by_mmdet3d(tmp_path: Path, tables: Tables, converter: ModuleType) -> None:
    tables["ego_pose"][0] |= {"translation": [99.0, 195.0, 0.1], "rotation": NO_TURN}
    frames = mini_train(write(tmp_path, tables))
    frame = frames[1]
    theirs = converter.obtain_sensor2top(
        frames.tables, "lidar0", frame.lidar_to_ego[:3, 3], frame.lidar_to_ego[:3, :3],
        frame.ego_to_global[:3, 3], frame.ego_to_global[:3, :3],
    )  # fmt: skip
    ours = frame.sweeps[2].to_key
    np.testing.assert_allclose(ours[:3, :3], theirs["sensor2lidar_rotation"], atol=1e-9)
    np.testing.assert_allclose(ours[:3, 3], theirs["sensor2lidar_translation"], atol=1e-9)


def test_an_unknown_token_is_named(made_frames: Frames) -> None:
    with pytest.raises(DataError, match=r"the tables hold no such key frame .*; got nonsense"):
        made_frames["nonsense"]


BAD_ROWS = [
    ("ego_pose", 1, {"translation": [1.0, float("nan"), 0.0]}, "a position is not a place"),
    ("ego_pose", 1, {"translation": [1e30, 0.0, 0.0]}, "a position is not a place"),
    ("ego_pose", 1, {"translation": [float("inf"), 0.0, 0.0]}, "a position is not a place"),
    ("ego_pose", 1, {"translation": None}, "a table's row lacks numbers"),
    ("ego_pose", 2, {"rotation": [0.0, 0.0, 0.0, 0.0]}, "a rotation is not a unit quaternion"),
    ("calibrated_sensor", 0, {"translation": [0.0, None, 2.0]}, "a position is not a place"),
    ("sample_data", 1, {"prev": "lidar1"}, "`prev` does not lead to an older one"),
    ("sample_annotation", 2, {"size": [2.0, 0.0, 1.5]}, "a box has no size"),
    ("sample_annotation", 2, {"size": [2.0, -4.0, 1.5]}, "a box has no size"),
    ("sample_annotation", 2, {"translation": [float("nan")] * 3}, "a position is not a place"),
]


@pytest.mark.parametrize(("table", "row", "change", "what"), BAD_ROWS)
def test_rows_that_are_not_plausible_are_named(tmp_path: Path, tables: Tables, table, row, change, what) -> None:
    rows = tables[table]
    rows[row].update(change)
    with pytest.raises(DataError, match=what) as caught:
        mini_train(write(tmp_path, tables))[1]
    assert f"{table}.json, token {rows[row]['token']}" in str(caught.value)
