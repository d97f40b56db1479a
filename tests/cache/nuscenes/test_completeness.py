import json
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from cache.errors import ConfigError, DataError
from cache.nuscenes.completeness import largest_width, on_disk, only, require_listed, without
from cache.nuscenes.frames import CAMERAS, Frames
from tests.factories.tables import Tables, make_tables, write_tables


def frames_of(root: Path, tables: Tables) -> Frames:
    return Frames(root=write_tables(root, tables), version="v1.0-mini", splits=("all",))


def touch(frames: Frames, *names: str) -> None:
    for name in names:
        (frames.root / name).parent.mkdir(parents=True, exist_ok=True)
        (frames.root / name).touch()


def refusal(frames: Frames) -> str:
    """The error of frames whose tables do not list everything; while testing, beartype looks into them earlier."""
    with pytest.raises((DataError, TypeCheckError)) as caught:
        require_listed(frames)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, DataError):
        error = error.__cause__ or error.__context__
    return str(error)


def test_tables_that_list_everything_pass(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, make_tables())
    require_listed(frames)
    assert largest_width(frames) == 800


def test_a_frame_without_a_lidar_rotation_is_named(tmp_path: Path) -> None:
    tables = make_tables()
    for row in tables["sample_data"]:
        row["is_key_frame"] &= row["token"] != "lidar2"
    message = refusal(frames_of(tmp_path, tables))
    assert message.startswith("the key frame has no LiDAR rotation (token second); got CAM_BACK, ")
    assert "expected LIDAR_TOP" in message


def test_images_without_a_size_are_named(tmp_path: Path) -> None:
    tables = make_tables()
    for row in tables["sample_data"]:
        if row["token"] == "CAM_BACK second":
            row["width"] = row["height"] = 0
    assert refusal(frames_of(tmp_path, tables)) == (
        "a camera image has no size in the tables (sample_data.json, CAM_BACK of token second); got 0 x 0; expected "
        "width and height in pixels. Write the size of the image files into width and height."
    )


def test_cameras_without_intrinsics_are_named(tmp_path: Path) -> None:
    tables = make_tables()
    tables["calibrated_sensor"][2]["camera_intrinsic"] = []
    assert "a camera has no intrinsics (token " in refusal(frames_of(tmp_path, tables))


def test_frames_are_excluded_by_token(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, make_tables())
    left = without(frames, {"first"})
    assert left.tokens == ("second",)
    assert left["first"].token == "first"  # history may still read it
    with pytest.raises(
        ConfigError, match=r"no key frame that is to be excluded \(exclude, .*got third; expected tokens"
    ):
        without(frames, {"third"})
    with pytest.raises(ConfigError, match="every frame of the split is excluded"):
        without(frames, {"first", "second"})


def test_frames_are_chosen_by_token(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, make_tables())
    assert only(frames, ["second"]).tokens == ("second",)
    assert only(frames, ["second", "first"]).tokens == ("first", "second")
    with pytest.raises(ConfigError, match=r"no key frame that is to be used \(tokens, .*got third; expected tokens"):
        only(frames, ["first", "third"])


def test_frames_without_their_files_are_skipped(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, make_tables())
    images = [f"{name}/{name} {token}" for name in CAMERAS for token in ("first", "second")]
    with pytest.raises(
        DataError, match=r"no frame of the split has all its files .*got 2 frames, each with a file mis"
    ):
        on_disk(frames, CAMERAS)
    touch(frames, *images)
    assert on_disk(frames, CAMERAS).tokens == ("first", "second")
    (frames.root / images[0]).unlink()
    assert on_disk(frames, CAMERAS).tokens == ("second",)
    with pytest.raises(DataError, match="no frame of the split has all its files"):
        on_disk(frames, CAMERAS, history=1)
    touch(frames, "LIDAR_TOP/lidar2")
    assert on_disk(frames, (*CAMERAS, "LIDAR_TOP")).tokens == ("second",)
    with pytest.raises(DataError, match="no frame of the split has all its files"):
        on_disk(frames, ("LIDAR_TOP",), past_sweeps=1)
    touch(frames, "LIDAR_TOP/lidar1", "LIDAR_TOP/lidar0")
    assert on_disk(frames, ("LIDAR_TOP",), past_sweeps=9).tokens == ("first", "second")


@pytest.mark.parametrize("table", ["sample", "sample_annotation"])
def test_chains_against_time_are_named(tmp_path: Path, table: str) -> None:
    tables = make_tables()
    if table == "sample":
        tables["sample"][1]["timestamp"] = 0
    else:
        tables["sample_annotation"][0] |= {"prev": "car second", "next": ""}
        tables["sample_annotation"][1]["prev"] = ""
    with pytest.raises(
        DataError, match=rf"prev and next of a nuScenes table do not follow time .*{table}.json, record"
    ):
        frames_of(tmp_path, tables)


def test_a_scene_without_its_first_frame_is_named(tmp_path: Path) -> None:
    tables = json.loads(json.dumps(make_tables()))
    tables["sample"] = tables["sample"][1:]
    with pytest.raises(
        DataError, match=r"refers to a record that is not there .*sample.json.*prev 'first' in record sec"
    ):
        frames_of(tmp_path, tables)
