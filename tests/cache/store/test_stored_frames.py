"""Frames that a store carries: the same as those of the tables, on a machine that has none."""

import json
import os
import pickle
import re
import shutil
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from benchmarks.crash import contents
from cache.dumping.run import dump
from cache.dumping.setup import frame_files
from cache.dumping.verify import repair, verify
from cache.errors import CorruptStoreError, DataError, StoreError
from cache.nuscenes.frames import Frames
from cache.nuscenes.index_files import META, IndexFiles, TableIndex, read_index, write_index
from cache.store.documents import read_attributes, read_signed, sign
from cache.store.folder import StoreFolder
from cache.store.layout import FRAMES, ROOT
from cache.store.stored_frames import StoredFrames
from cache.store.writer import StoreWriter
from tests.factories.carried import make_files
from tests.factories.devkit import devkit_frame, require_equal
from tests.factories.stores import SmallTeacher, make_config, make_store, make_tokens, open_writer
from tests.factories.tables import make_tables, write_tables


def carried(store: Path, root: Path, *splits: str, version: str = "v1.0-mini") -> Frames:
    return Frames(root=root, version=version, splits=splits, store=StoredFrames(path=store))


def dumped(frames: Frames, path: Path) -> Path:
    dump(make_config(), frames, SmallTeacher(), path)
    return path


@pytest.fixture(scope="module")
def sound(made_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two frames, not to be written to."""
    return dumped(made_frames, tmp_path_factory.mktemp("sound") / "teacher.zarr")


@pytest.fixture(scope="module")
def other(made_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of other frames of the same world, not to be written to."""
    frames = Frames(root=made_root, version="v1.0-mini", splits=("mini_val",))
    return dumped(frames, tmp_path_factory.mktemp("other") / "teacher.zarr")


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "teacher.zarr")


def faults(store: Path) -> list[str]:
    return [str(damage.error) for damage in verify(store).damage]


def unbound(store: Path) -> Path:
    """As stores were before the root named their frames."""
    root = read_signed((store / ROOT).read_bytes(), ROOT)
    del root["attributes"]["frames_sha256"]
    (store / ROOT).write_bytes(sign(root))
    return store


def test_frames_are_those_of_the_tables(made_root: Path, other: Path, tmp_path: Path) -> None:
    known = Frames(root=made_root, version="v1.0-mini", splits=("mini_val",))
    images = tmp_path / "images"
    images.mkdir()
    frames = carried(other, images, "mini_val")
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
    write_index(frame_files(known), tmp_path / "index")
    expected = list(known)
    shutil.rmtree(root / "v1.0-mini")
    frames = Frames(root=root, version="v1.0-mini", splits=("mine",), store=Written(tmp_path / "index"))
    for ours, theirs in zip(frames, expected, strict=True):
        require_equal(ours, theirs)
    assert len(frames[1].sweeps) == 3
    assert frames.tables.nbytes < known.tables.nbytes
    assert len(frames.tables.columns.box_center) == 5


@dataclass
class Written:
    """An index that needs no store."""

    path: Path

    def read(self) -> tuple[TableIndex, str]:
        found = read_index(self.path)
        assert isinstance(found, tuple)
        return found


def test_tables_come_first(made_root: Path, sound: Path) -> None:
    assert carried(sound, made_root, "mini_train").tables.path is not None
    assert carried(sound, sound, "mini_train").tables.path is None


@pytest.mark.parametrize(("version", "got"), [("v1.0-test", "frames of v1.0-mini"), ("v1.0-mini", "none")])
def test_a_store_without_the_frames_needs_tables(store: Path, version: str, got: str) -> None:
    if got == "none":
        shutil.rmtree(unbound(store) / FRAMES)
    message = f"the nuScenes tables are missing, .*got {got}; expected frames of {version}. Name a store"
    with pytest.raises(DataError, match=message):
        carried(store, store / "images", "mini_train", version=version)


def test_a_dump_keeps_its_frames(made_frames: Frames, store: Path) -> None:
    assert faults(store) == []
    before = {file.name: file.stat().st_mtime_ns for file in (store / FRAMES).iterdir()}
    dumped(made_frames, store)
    assert {file.name: file.stat().st_mtime_ns for file in (store / FRAMES).iterdir()} == before


def link_to(other: Path, path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(other)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flip_last(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


DAMAGES = {
    "one bit": (lambda frames, _: flip_last(frames / "box_center.npy"), ["a file .* is damaged .*/box_center.npy"]),
    "cut short": (lambda frames, _: os.truncate(frames / "pose.npy", 0), ["a file .* is damaged .*/pose.npy"]),
    "missing": (lambda frames, _: shutil.rmtree(frames), ["cannot be read .*/frames/index.json.*No such file"]),
    "another store's": (
        lambda frames, other: shutil.copytree(other / FRAMES, frames, dirs_exist_ok=True),
        ["damaged, or another store's .*/frames/index.json"],
    ),
    "another store's column": (
        lambda frames, other: shutil.copy(other / FRAMES / "pose.npy", frames),
        ["a file .* is damaged .*/pose.npy"],
    ),
    "columns exchanged": (
        lambda frames, _: swap(frames / "box_previous.npy", frames / "box_next.npy"),
        ["a file .* is damaged .*/box_previous.npy", "a file .* is damaged .*/box_next.npy"],
    ),
    "a link for the folder": (lambda frames, other: link_to(other / FRAMES, frames), ["a link, a pipe or a device"]),
    "a pipe": (lambda frames, _: pipe(frames / "pose.npy"), ["a link, a pipe or a device .*/pose.npy"]),
    "a link": (lambda frames, _: link_to(Path("/dev/zero"), frames / META), ["a link, a pipe .*/index.json"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_frames_are_found_and_written_again(
    made_frames: Frames, store: Path, other: Path, sound: Path, damage: str
) -> None:
    apply, expected = DAMAGES[damage]
    apply(store / FRAMES, other)
    found = faults(store)
    assert len(found) == len(expected)
    for fault, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, fault)
    with pytest.raises(CorruptStoreError, match=expected[0]):
        carried(store, store / "images", "mini_train")
    report = repair(store, make_config(), made_frames, SmallTeacher())
    assert not report.damage
    assert "written again: frames/" in str(report)
    now, whole = contents(store), contents(sound)
    assert {key: now[key] for key in whole} == whole


def test_a_changed_record_with_checksums_of_its_own_is_not_the_stores(store: Path) -> None:
    """Somebody moved all boxes, and made every checksum in the folder fit."""
    index, _ = StoredFrames(path=store).read() or pytest.fail("no frames")
    moved = replace(index.columns, box_center=index.columns.box_center + 1)
    shutil.rmtree(store / FRAMES)
    write_index(IndexFiles(moved, index.names, "v1.0-mini"), store / FRAMES)
    assert re.search("damaged, or another store's", "".join(faults(store)))


@pytest.mark.parametrize(
    ("column", "value"),
    [("box_next", 10**6), ("sample_scene", -5), ("sample_boxes", -1), ("pose", "text"), ("box_size", [1.0, 2.0])],
)
def test_columns_that_do_not_fit_each_other(store: Path, column: str, value: object) -> None:
    """As somebody who signs what they changed can make them."""
    index, _ = StoredFrames(path=store).read() or pytest.fail("no frames")
    stored = getattr(index.columns, column)
    changed = np.full_like(stored, value) if isinstance(value, int) else np.array(value)
    files = IndexFiles(index.columns, index.names, "v1.0-mini")
    object.__setattr__(index.columns, column, changed)
    shutil.rmtree(unbound(store) / FRAMES)
    write_index(files, store / FRAMES)
    (fault,) = faults(store)
    assert "do not fit each other" in fault
    assert f"{column}.npy" in fault


def test_frames_that_no_root_names_are_read_and_bound_by_the_next_dump(
    made_frames: Frames, store: Path, sound: Path
) -> None:
    """Stores of version 2 from before the root named them."""
    assert carried(unbound(store), store / "images", "mini_train").tokens == made_frames.tokens
    assert "the frames that it carries are not bound to it" in str(verify(store))
    dumped(made_frames, store)
    assert contents(store) == contents(sound)


def test_frames_that_no_root_names_and_lack_samples_are_damage(store: Path, other: Path) -> None:
    shutil.copytree(other / FRAMES, unbound(store) / FRAMES, dirs_exist_ok=True)
    (fault,) = faults(store)
    assert "not those of its samples" in fault


def test_a_finished_store_without_frames_gets_them(made_frames: Frames, store: Path, sound: Path) -> None:
    shutil.rmtree(unbound(store) / FRAMES)
    assert faults(store) == []
    assert "not bound" not in str(verify(store))
    report = dump(make_config(), made_frames, SmallTeacher(), store)
    assert str(report).startswith(
        f"{store}: all 2 samples were there already; written again: frames/sample_token.npy, "
    )
    assert contents(store) == contents(sound)


def test_corrected_tables_leave_the_frames_of_a_store(made_frames: Frames, store: Path, sound: Path) -> None:
    columns = made_frames.tables.columns
    corrected = copy(made_frames)
    index = replace(made_frames.tables, columns=replace(columns, box_center=columns.box_center + 1), path=None)
    object.__setattr__(corrected, "tables", index)
    dumped(corrected, store)
    assert contents(store) == contents(sound)
    (store / FRAMES / "pose.npy").unlink()
    dumped(corrected, store)
    assert faults(store) == []
    assert read_attributes(store).frames_sha256 != read_attributes(sound).frames_sha256


def test_a_writer_that_outlives_its_store_writes_no_frames_to_the_next(
    made_frames: Frames, store: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is replaced after the writer has opened it and before it writes the frames."""
    shutil.rmtree(unbound(store) / FRAMES)
    mend = StoreWriter._mend_frames

    def replaced(writer: StoreWriter, folder: StoreFolder) -> None:
        store.rename(store.with_name("old"))
        shutil.copytree(other, store)
        mend(writer, folder)

    monkeypatch.setattr(StoreWriter, "_mend_frames", replaced)
    with pytest.raises(StoreError, match="the store was removed or replaced while this process was writing to it"):
        dumped(made_frames, store)
    assert contents(store) == contents(other)


@pytest.mark.parametrize("written", [0, 5, 26, 30])
def test_a_killed_creation_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """26 files of frames come first, then the small ones, and the root last."""
    frames = make_files(make_tokens(10))
    whole = make_store(tmp_path / "whole.zarr", frames=frames)
    write, done = StoreFolder.write_durably, []

    def killed(folder: StoreFolder, key: str, data: bytes) -> None:
        if len(done) == written:
            folder.make(key.rpartition("/")[0])
            (folder.path / f"{key}.77.partial").write_bytes(data[:5])
            raise KeyboardInterrupt
        write(folder, key, data)
        done.append(key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreFolder, "write_durably", killed)
        open_writer(tmp_path / "killed.zarr", frames=frames)
    assert not (tmp_path / "killed.zarr" / ROOT).exists()
    assert contents(make_store(tmp_path / "killed.zarr", frames=frames)) == contents(whole)
