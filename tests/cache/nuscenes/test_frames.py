"""nuScenes' tables -> frames: tiny tables with known numbers, and the real frame against mmdet3d's own converter."""

import importlib.util
import json
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from cache.errors import ConfigError, DataError
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import CAMERAS, Frames
from cache.spec import CLASSES
from tests.factories.devkit import devkit_frame, require_equal
from tests.factories.tables import NO_TURN, Tables, make_tables, write_tables


@pytest.fixture
def tables() -> Tables:
    return make_tables()


def mini_train(root: Path, **options: int) -> Frames:
    return Frames(root=root, version="v1.0-mini", splits=("mini_train",), **options)


@pytest.fixture
def frame(tmp_path: Path, tables: Tables) -> Frame:
    """The second key frame."""
    return mini_train(write_tables(tmp_path, tables))[1]


def test_frames_come_in_order_and_by_token(tmp_path: Path, tables: Tables) -> None:
    frames = mini_train(write_tables(tmp_path, tables))
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
    assert mini_train(write_tables(tmp_path, tables))[0].boxes.shape == (0, 9)


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


def require_devkits_frames(root: Path, version: str, *splits: str) -> None:
    nusc = NuScenes(version, str(root), verbose=False)
    frames = Frames(root=root, version=version, splits=splits)
    assert len(frames)
    for frame in frames:
        require_equal(frame, devkit_frame(nusc, frame.token))


def test_frames_are_the_devkits_to_the_last_digit(made_root: Path) -> None:
    require_devkits_frames(made_root, "v1.0-mini", "mini_train", "mini_val")


@pytest.mark.parametrize(
    ("name", "version", "splits"),
    [
        ("nuscenes-one-frame", "v1.0-mini", ("mini_train",)),
        ("nuscenes-two-frames", "v1.0-trainval", ("train", "val")),
        ("ddad-six-frames", "v1.0-mini", ("mini_train", "mini_val")),
    ],
)
def test_real_frames_are_the_devkits_to_the_last_digit(name: str, version: str, splits: tuple[str, ...]) -> None:
    root = Path(__file__).parents[4] / "shared" / name
    if not root.is_dir():
        pytest.skip(f"{name} is not here: it is not part of the project")
    require_devkits_frames(root, version, *splits)


@pytest.mark.parametrize("seed", range(3))
def test_any_rotation_is_the_devkits_to_the_last_digit(tmp_path: Path, tables: Tables, seed: int) -> None:
    """Quaternions that are and are not of unit length, tracks in every order, gaps around the 1.5 s of the devkit."""
    rng = np.random.default_rng(seed)
    for record in (*tables["ego_pose"], *tables["calibrated_sensor"], *tables["sample_annotation"]):
        turn = rng.normal(size=4)
        record["rotation"] = (turn / (np.linalg.norm(turn) if rng.random() < 0.7 else 1.0)).tolist()
        record["translation"] = rng.normal(scale=1000, size=3).tolist()
    step_us = (499_999, 1_500_000, 1_500_001)[seed]
    tables["sample"][1]["timestamp"] = step_us
    root = write_tables(tmp_path, tables)
    require_devkits_frames(root, "v1.0-mini", "mini_train")
    moving = mini_train(root)[1].boxes[0, 7:]
    assert moving.any() == (step_us <= 1_500_000)


def test_counts_are_those_of_the_frames(made_frames: Frames, tmp_path: Path, tables: Tables) -> None:
    for frames in (made_frames, mini_train(write_tables(tmp_path, tables))):
        expected = [np.bincount(frame.labels, minlength=len(CLASSES)) for frame in frames]
        np.testing.assert_array_equal(frames.label_counts(), expected)
        for frame in frames:
            np.testing.assert_array_equal(frames.labels(frame.token), frame.labels)


def test_frames_travel_as_a_path(made_frames: Frames) -> None:
    sent = pickle.dumps(made_frames)
    assert len(sent) < 2000
    for ours, theirs in zip(pickle.loads(sent), made_frames, strict=True):
        require_equal(ours, theirs)


def test_a_scene_of_ones_own(tmp_path: Path, tables: Tables) -> None:
    """Another version, another scene, one camera, a LiDAR of another name, no map."""
    tables["scene"][0]["name"] = "parking lot"
    for record in tables["sensor"]:
        record["channel"] = {"LIDAR_TOP": "roof", "CAM_FRONT": "front"}.get(record["channel"], record["channel"])
    root = write_tables(tmp_path, tables, version="mine")
    (root / "mine" / "map.json").unlink()
    (root / "mine" / "splits.json").write_text(json.dumps({"cars": ["parking lot"], "none": []}))
    for splits in (("cars",), ("all",), ("parking lot",), ("none", "cars")):
        frames = Frames(root=root, version="mine", splits=splits, cameras=("front",), lidar="roof")
        assert frames.tokens == ("first", "second")
        assert [camera.name for camera in frames[1].cameras] == ["front"]
        assert len(frames[1].sweeps) == 3
    with pytest.raises(DataError, match=r"the split holds no key frame .*mine, none\).*got scenes parking lot"):
        Frames(root=root, version="mine", splits=("none",))
    with pytest.raises(DataError, match=r"no image of a camera \(token first\).*got CAM_BACK.*expected CAM_FRONT;?"):
        Frames(root=root, version="mine", splits=("all",), cameras=CAMERAS)[0]
    with pytest.raises(DataError, match=r"no LiDAR rotation \(token first\).*expected LIDAR_TOP"):
        Frames(root=root, version="mine", splits=("all",), lidar="LIDAR_TOP")[0]


def test_sensors_by_default(tmp_path: Path, tables: Tables) -> None:
    def sensors(**channels: str) -> tuple[str, tuple[str, ...]]:
        for record in tables["sensor"]:
            record["channel"] = channels.get(record["token"], record["token"])
        frames = mini_train(write_tables(tmp_path, tables))
        assert len(frames[1].cameras) == len(frames.cameras)
        return frames.lidar, frames.cameras

    assert sensors() == ("LIDAR_TOP", CAMERAS)
    assert sensors(LIDAR_TOP="roof") == ("roof", CAMERAS)
    # One of another name is not taken for one of nuScenes'.
    assert sensors(CAM_FRONT="front") == ("LIDAR_TOP", tuple(name for name in CAMERAS if name != "CAM_FRONT"))
    own = {name: name.removeprefix("CAM_").lower() for name in CAMERAS}
    assert sensors(**own) == ("LIDAR_TOP", tuple(own[record["token"]] for record in tables["sensor"][1:]))


@pytest.mark.parametrize("content", ["[", "[]", '{"cars": "scene"}', '{"cars": [1]}'])
def test_broken_splits_are_named(tmp_path: Path, tables: Tables, content: str) -> None:
    root = write_tables(tmp_path, tables)
    (root / "v1.0-mini" / "splits.json").write_text(content)
    with pytest.raises(DataError, match=r"the splits cannot be read .*splits\.json.*expected .*Correct the file"):
        mini_train(root)


def test_a_camera_without_intrinsics_is_named(tmp_path: Path, tables: Tables) -> None:
    tables["calibrated_sensor"][2]["camera_intrinsic"] = []
    with pytest.raises(DataError, match=r"a camera has no intrinsics \(token first, CAM_FRONT\); expected .*3 x 3"):
        mini_train(write_tables(tmp_path, tables))[0]


def test_intrinsics_without_an_inverse_are_named(tmp_path: Path, tables: Tables) -> None:
    tables["calibrated_sensor"][2]["camera_intrinsic"] = [[0.0, 0, 800], [0, 1200, 450], [0, 0, 1]]
    with pytest.raises(DataError, match=r"no inverse \(token first, CAM_FRONT\); got .*0\.0.*; expected focal lengths"):
        mini_train(write_tables(tmp_path, tables))[0]


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tables are missing .*got no such folder; expected v1\.0-mini/"):
        mini_train(tmp_path / "nowhere")
    (tmp_path / "v1.0-trainval").mkdir()
    with pytest.raises(DataError, match=r"got \['v1\.0-trainval'\]; expected v1\.0-mini/"):
        mini_train(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", None])
def test_a_broken_table_is_said_to_be_one(tmp_path: Path, tables: Tables, content: str | None) -> None:
    broken = write_tables(tmp_path, tables) / "v1.0-mini" / "sample.json"
    if content is None:
        broken.unlink()
    else:
        broken.write_text(content)
    with pytest.raises(DataError, match=r"a nuScenes table cannot be read .*v1\.0-mini/sample\.json\); got \w+Error: "):
        mini_train(tmp_path)


def test_splits_are_checked(tmp_path: Path, tables: Tables) -> None:
    root = write_tables(tmp_path, tables)
    with pytest.raises(ConfigError, match=r"unknown split \(.*v1\.0-mini\); got mini; expected some of .*mini_train"):
        Frames(root=root, version="v1.0-mini", splits=("mini",))
    with pytest.raises(DataError, match=r"the split holds no key frame .*mini_val.*got scenes scene-0061"):
        Frames(root=root, version="v1.0-mini", splits=("mini_val",))
    with pytest.raises(DataError, match="no split named"):
        Frames(root=root, version="v1.0-mini", splits=())


def test_a_camera_without_image_is_named(tmp_path: Path, tables: Tables) -> None:
    tables["sample_data"] = [data for data in tables["sample_data"] if data["token"] != "CAM_BACK second"]
    with pytest.raises(DataError, match=r"no image of a camera \(token second\).*expected CAM_BACK"):
        mini_train(write_tables(tmp_path, tables))[1]


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
    nusc = NuScenes("v1.0-mini", str(real_frames.root), verbose=False)
    (info,), _ = converter._fill_trainval_infos(nusc, {nusc.scene[0]["token"]}, set())
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
    frames = mini_train(write_tables(tmp_path, tables))
    frame = frames[1]
    theirs = converter.obtain_sensor2top(
        NuScenes("v1.0-mini", str(tmp_path), verbose=False), "lidar0",
        frame.lidar_to_ego[:3, 3], frame.lidar_to_ego[:3, :3],
        frame.ego_to_global[:3, 3], frame.ego_to_global[:3, :3],
    )  # fmt: skip
    ours = frame.sweeps[2].to_key
    np.testing.assert_allclose(ours[:3, :3], theirs["sensor2lidar_rotation"], atol=1e-9)
    np.testing.assert_allclose(ours[:3, 3], theirs["sensor2lidar_translation"], atol=1e-9)


def test_an_unknown_token_is_named(made_frames: Frames) -> None:
    with pytest.raises(DataError, match=r"the tables hold no such key frame .*; got nonsense"):
        made_frames["nonsense"]


BAD_ROWS = [
    ("ego_pose", 1, {"translation": [1e30, 0.0, 0.0]}, r"a position is not a place \(token second, .*lidar1"),
    ("ego_pose", 2, {"rotation": [0.0, 0.0, 0.0, 0.0]}, r"a rotation is not a quaternion \(token second"),
    ("calibrated_sensor", 0, {"translation": [0.0, -1e30, 2.0]}, r"a position is not a place \(token second"),
    ("sample_data", 1, {"prev": "lidar1"}, r"`prev` does not lead to an older one \(token second, .*lidar1"),
    ("sample_annotation", 2, {"size": [2.0, 0.0, 1.5]}, r"a box has no size \(token second, box 1"),
    ("sample_annotation", 1, {"size": [2.0, -4.0, 1.5]}, r"a box has no size \(token second, box 0"),
    ("sample_annotation", 2, {"rotation": [0.0] * 4}, r"a rotation is not a quaternion \(token second, box 1"),
    ("ego_pose", 1, {"translation": [1.0, float("nan"), 0.0]}, "a nuScenes table cannot be read .*ego_pose"),
    ("ego_pose", 1, {"translation": None}, "a nuScenes table cannot be read .*ego_pose"),
    ("sample_annotation", 2, {"size": [2.0, float("inf"), 1.5]}, "a nuScenes table cannot be read .*sample_annotation"),
]


@pytest.mark.parametrize(("table", "row", "change", "what"), BAD_ROWS)
def test_rows_that_are_not_plausible_are_named(tmp_path: Path, tables: Tables, table, row, change, what) -> None:
    tables[table][row].update(change)
    with pytest.raises(DataError, match=what):
        mini_train(write_tables(tmp_path, tables))[1]
