"""A writer holds its store by descriptors: it writes nothing to a store that took the place of its own."""

import shutil
from pathlib import Path

import pytest

from benchmarks.crash import contents
from benchmarks.hostile import empty, move, remove, unlink_files
from cache.errors import CorruptStoreError, MismatchError, StoreError
from cache.spec import PointPipeline
from cache.store.documents import TeacherFile
from cache.store.folder import StoreFolder
from cache.store.layout import Layout
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter
from tests.factories.stores import fill, make_sample, make_spec, make_store, make_tokens, open_writer

OTHER = PointPipeline(past_sweeps=4)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "teacher.zarr"


def own_files(path: Path) -> dict[str, bytes]:
    return {key: data for key, data in contents(path).items() if not key.endswith(".partial")}


@pytest.mark.parametrize("way", [remove, move, empty, unlink_files])
def test_a_writer_that_outlives_its_store_writes_nothing_to_the_next(path, way):
    with open_writer(path) as writer:
        fill(writer, [0])
        begun = writer.shard(1)
        begun.add([make_sample(writer.spec, position) for position in writer.positions(1)])
        way(path)
        make_store(path, points=OTHER)
        before = own_files(path)
        with pytest.raises(StoreError, match="the store was removed or replaced while this process was writing to it"):
            begun.commit()
        with pytest.raises(StoreError, match="removed or replaced"):
            writer.shard(2)
    assert own_files(path) == before


def test_a_store_copied_over_is_not_written_to(path, tmp_path):
    other = make_store(tmp_path / "other.zarr", points=OTHER)
    with open_writer(path) as writer:
        begun = writer.shard(1)
        begun.add([make_sample(writer.spec, position) for position in writer.positions(1)])
        shutil.copytree(other, path, dirs_exist_ok=True)
        before = own_files(path)
        with pytest.raises(MismatchError, match="past_sweeps"):
            begun.commit()
    assert own_files(path) == before


def test_somebodys_folder_with_a_manifest_is_left_alone(path):
    for name in ("manifest/notes.txt", "downloads/movie.partial"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text("mine")
    with pytest.raises(StoreError, match=r"taken by something else .*got downloads, and no zarr.json"):
        open_writer(path)
    assert set(contents(path)) == {"manifest/notes.txt", "downloads/movie.partial"}


def test_only_files_that_a_dump_of_this_store_wrote_are_removed(path):
    with open_writer(path) as writer:
        fill(writer, [0])
    kept = ("downloads/movie.partial", "heatmap/movie.77.partial", "heatmap/c.9.0.0.0.0.77.partial", "x.partial")
    for name in (*kept, "heatmap/c.1.0.0.0.0.77.partial"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("half")
    with open_writer(path):
        assert {str(file.relative_to(path)) for file in path.rglob("*.partial")} == set(kept)


def test_a_complete_store_without_some_records_is_to_be_repaired(path):
    make_store(path)
    (path / "manifest/1.json").unlink()
    with pytest.raises(CorruptStoreError, match=r"lacks the records of some shards .*got shards 1 missing") as caught:
        open_writer(path)
    assert "--repair" in str(caught.value)


def test_a_changed_checkpoint_of_the_same_name_is_refused(path):
    def writer(digest: str) -> StoreWriter:
        tokens = make_tokens(4)
        file = TeacherFile(name="teacher.pth", sha256=digest * 64)
        return StoreWriter(
            path, make_spec(tokens), tokens, head_weights={}, software={}, layout=Layout(), teacher_file=file
        )

    writer("a").close()
    writer("a").close()
    assert TeacherCache(path, allow_partial=True).attributes.teacher_file.sha256 == "a" * 64
    with pytest.raises(MismatchError, match="the teacher's checkpoint is not the file") as caught:
        writer("b")
    assert f"got teacher.pth with SHA-256 {'b' * 64}; expected {'a' * 64}" in str(caught.value)


def test_what_has_the_place_of_a_file_is_set_aside(tmp_path):
    (tmp_path / "a/b.json").mkdir(parents=True)
    (tmp_path / "a/b.json/mine").write_text("kept")
    folder = StoreFolder(tmp_path)
    folder.write_durably("a/b.json", b"{}")
    (tmp_path / "c").write_text("kept too")
    folder.write_durably("c/d.json", b"[]")
    folder.close()
    assert contents(tmp_path) == {
        "a/b.json": b"{}",
        "a/b.json.aside0/mine": b"kept",
        "c.aside0": b"kept too",
        "c/d.json": b"[]",
    }
