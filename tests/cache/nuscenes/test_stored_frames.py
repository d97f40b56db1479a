"""Frames that a store carries: the same as those of the tables, on a machine that has none."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from cache.dumping.run import dump
from cache.dumping.verify import repair, verify
from cache.errors import DataError
from cache.nuscenes.frames import Frames
from cache.nuscenes.index_files import FRAMES_FOLDER
from cache.nuscenes.stored_frames import write_frames
from tests.factories.devkit import devkit_frame, require_equal
from tests.factories.stores import SmallTeacher, make_config
from tests.factories.tables import make_tables, write_tables


def carried(store: Path, root: Path, *splits: str) -> Frames:
    return Frames(root=root, version="v1.0-mini", splits=splits, store=store)


def test_frames_are_those_of_the_tables(made_root: Path, tmp_path: Path) -> None:
    known = Frames(root=made_root, version="v1.0-mini", splits=("mini_val",))
    write_frames(known, tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    frames = carried(tmp_path, images, "mini_val")
    nusc = NuScenes("v1.0-mini", str(made_root), verbose=False)
    nusc.dataroot = str(images)
    assert frames.tokens == known.tokens
    for frame in frames:
        require_equal(frame, devkit_frame(nusc, frame.token))
    np.testing.assert_array_equal(frames.label_counts(), known.label_counts())
    for ours, theirs in zip(pickle.loads(pickle.dumps(frames)), frames, strict=True):
        require_equal(ours, theirs)
    with pytest.raises(DataError, match="the split holds no key frame"):
        frames.of_splits("mini_train")
    with pytest.raises(DataError, match="the tables hold no such key frame"):
        frames[Frames(root=made_root, version="v1.0-mini", splits=("mini_train",)).tokens[0]]


def test_tracks_and_rotations_of_some_scenes_are_kept_whole(tmp_path: Path) -> None:
    """A second scene before the first one moves every row."""
    tables = make_tables()
    for name, rows in make_tables().items():
        if name in ("scene", "sample", "sample_data", "sample_annotation", "ego_pose"):
            links = ("token", "scene_token", "sample_token", "ego_pose_token", "prev", "next")
            other = [row | {key: f"other {row[key]}" for key in links if row.get(key)} for row in rows]
            tables[name] = other + tables[name]
    tables["scene"][0]["name"] = "elsewhere"
    root = write_tables(tmp_path / "data", tables)
    (root / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-0061"]}))
    known = Frames(root=root, version="v1.0-mini", splits=("mine",))
    write_frames(known, root)
    expected = list(known)
    shutil.rmtree(root / "v1.0-mini")
    frames = carried(root, root, "mine")
    for ours, theirs in zip(frames, expected, strict=True):
        require_equal(ours, theirs)
    assert len(frames[1].sweeps) == 3
    assert frames.tables.nbytes < known.tables.nbytes
    assert len(frames.tables.columns.box_center) == 5


def test_tables_come_first(made_root: Path, tmp_path: Path) -> None:
    frames = carried(tmp_path, made_root, "mini_train")
    assert frames.tables.path is not None
    assert not frames.tables.path.is_relative_to(tmp_path)


@pytest.mark.parametrize("damage", ["another version", "damaged", "none"])
def test_a_store_without_its_frames_needs_tables(made_frames: Frames, tmp_path: Path, damage: str) -> None:
    if damage != "none":
        write_frames(made_frames, tmp_path)
    if damage == "damaged":
        (tmp_path / FRAMES_FOLDER / "pose.npy").write_bytes(b"")
    version = "v1.0-test" if damage == "another version" else "v1.0-mini"
    got = {"another version": "frames of v1.0-mini", "damaged": r"damaged ones \(pose.npy\)", "none": "none"}[damage]
    message = f"the nuScenes tables are missing, .*got {got}; expected frames of {version}. Name a store"
    with pytest.raises(DataError, match=message):
        Frames(root=tmp_path / "images", version=version, splits=("mini_train",), store=tmp_path)


def test_a_dump_keeps_its_frames(made_frames: Frames, tmp_path: Path) -> None:
    path, images = tmp_path / "teacher.zarr", tmp_path / "images"
    images.mkdir()
    dump(make_config(), made_frames, SmallTeacher(), path)
    assert not verify(path).damage
    assert carried(path, images, "mini_train").tokens == made_frames.tokens
    before = {file.name: file.stat().st_mtime_ns for file in (path / FRAMES_FOLDER).iterdir()}
    dump(make_config(), made_frames, SmallTeacher(), path)
    assert {file.name: file.stat().st_mtime_ns for file in (path / FRAMES_FOLDER).iterdir()} == before
    column = path / FRAMES_FOLDER / "box_center.npy"
    content = column.read_bytes()
    column.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (damage,) = verify(path).damage
    assert str(damage.error).startswith(
        f"a file of the frames that the store carries is missing or damaged ({column}). "
    )
    assert not repair(path, make_config(), made_frames, SmallTeacher()).damage
    assert column.read_bytes() == content


def test_frames_of_another_dump_are_damage(made_frames: Frames, made_root: Path, tmp_path: Path) -> None:
    dump(make_config(), made_frames, SmallTeacher(), tmp_path / "teacher.zarr")
    shutil.rmtree(tmp_path / "teacher.zarr" / FRAMES_FOLDER)
    assert not verify(tmp_path / "teacher.zarr").damage  # A store of an earlier version carries none.
    write_frames(Frames(root=made_root, version="v1.0-mini", splits=("mini_val",)), tmp_path / "teacher.zarr")
    assert len(verify(tmp_path / "teacher.zarr").damage) == 1
