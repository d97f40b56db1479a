import errno
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest

from benchmarks.crash import contents
from cache.errors import (
    ConfigError,
    CorruptStoreError,
    DataError,
    MismatchError,
    StoreBusyError,
    StoreError,
    UnsealedError,
)
from cache.spec import PointPipeline
from cache.store.layout import Layout, sample_arrays
from cache.store.partition import Part
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter
from tests.factories.stores import fill, make_sample, make_spec, make_store, make_tokens, open_writer


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "teacher.zarr"


def test_shards_are_committed_one_by_one_and_sealed_at_the_end(path):
    with open_writer(path) as writer:
        assert writer.missing_shards() == [0, 1, 2]
        assert [list(writer.positions(shard)) for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        fill(writer, [1])
        assert writer.missing_shards() == [0, 2]
        assert not writer.seal()
        assert not writer.sealed
        fill(writer)
        assert writer.seal()
        assert writer.sealed
        assert writer.seal()


def test_a_finished_store_is_left_alone(path):
    make_store(path)
    before = contents(path)
    with open_writer(path) as writer:
        assert writer.sealed
        assert writer.missing_shards() == []
        assert writer.seal()
    assert contents(path) == before


def test_two_dumps_of_the_same_are_the_same_bytes(tmp_path):
    ours, theirs = (make_store(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    assert contents(ours) == contents(theirs)


def test_resume_redoes_only_what_is_missing(path, tmp_path):
    with open_writer(path) as writer:
        fill(writer, [0])
    committed = (path / "heatmap" / "c.0.0.0.0.0").stat().st_mtime_ns
    with open_writer(path) as writer:
        assert writer.missing_shards() == [1, 2]
        fill(writer)
        writer.seal()
    assert (path / "heatmap" / "c.0.0.0.0.0").stat().st_mtime_ns == committed
    assert contents(path) == contents(make_store(tmp_path / "whole.zarr"))


def test_an_uncommitted_shard_leaves_nothing(path):
    with open_writer(path) as writer:
        before = contents(path)
        shard = writer.shard(0)
        shard.add([make_sample(writer.spec, 0)])
        assert list(path.rglob("*.partial"))
    assert contents(path) == before


def test_leftovers_of_a_killed_process_are_cleaned(path, tmp_path):
    with open_writer(path) as writer:
        fill(writer, [0])
    leftovers = ("heatmap/c.1.0.0.0.0.77.partial", "manifest/1.json.77.partial", "zarr.json.77.partial")
    leftovers += ("token/c.0.0.77.partial", "features/head/zarr.json.77.partial")
    for name in leftovers:
        (path / name).write_bytes(b"half")
    (path / "heatmap" / "c.1.0.0.0.0").write_bytes(b"renamed, but never named by the manifest")
    with open_writer(path) as writer:
        assert not list(path.rglob("*.partial"))
        fill(writer)
        writer.seal()
    assert contents(path) == contents(make_store(tmp_path / "whole.zarr"))


def test_a_killed_creation_is_finished(path, tmp_path):
    whole = make_store(tmp_path / "whole.zarr")
    (path / "manifest").mkdir(parents=True)
    (path / "token").mkdir()
    (path / "token" / "c.0.0").write_bytes(b"half")
    make_store(path)
    assert contents(path) == contents(whole)


def test_data_is_durable_before_the_manifest_names_it(path, monkeypatch):
    events: list[tuple[str, str]] = []
    rename = os.rename

    def relative(descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(path)

    def record_rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append(("rename", str(relative(dst_dir_fd) / target)))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def record_fsync(descriptor: int) -> None:
        events.append(("fsync", str(relative(descriptor))))

    with open_writer(path) as writer:
        shard = writer.shard(0)
        shard.add([make_sample(writer.spec, position) for position in range(4)])
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "rename", record_rename)
        shard.commit()
    commit = events.index(("rename", "manifest/0.json"))
    for array in sample_arrays(writer.spec).values():
        key = array.key(0)
        written = events.index(("fsync", f"{key}.{os.getpid()}.partial"))
        renamed = events.index(("rename", key))
        folder = events.index(("fsync", array.name))
        assert written < renamed < folder < commit
    assert events.index(("fsync", f"manifest/0.json.{os.getpid()}.partial")) < commit
    assert events[-1] == ("fsync", "manifest")


def test_another_spec_is_refused_with_a_diff_and_nothing_is_touched(path):
    make_store(path)
    before = contents(path)
    with pytest.raises(MismatchError) as caught:
        open_writer(path, points=PointPipeline(past_sweeps=4))
    assert "points.past_sweeps: stored 9, expected 4" in str(caught.value)
    assert str(path) in str(caught.value)
    assert contents(path) == before


def test_another_layout_is_refused(path):
    make_store(path)
    with pytest.raises(MismatchError, match=r"samples_per_shard=4.*samples_per_shard=5"):
        open_writer(path, size=5)


@pytest.mark.parametrize("make", [lambda p: p.write_text("a file"), lambda p: (p.mkdir(), (p / "x").write_text("y"))])
def test_a_folder_of_something_else_is_not_mixed_with(path, make):
    make(path)
    with pytest.raises(StoreError, match="taken by something else"):
        open_writer(path)


def test_an_empty_folder_will_do(path):
    path.mkdir()
    make_store(path)
    assert len(TeacherCache(path)) == 10


def test_a_damaged_root_is_not_written_over(path):
    make_store(path)
    (path / "zarr.json").write_text("{}")
    with pytest.raises(CorruptStoreError):
        open_writer(path)
    assert (path / "zarr.json").read_text() == "{}"


@pytest.fixture
def holder(path):
    """Another process that holds the first half of the shards until it is killed."""

    def hold(pipe) -> None:
        with open_writer(path, part=Part(index=0, count=2)):
            pipe.send("ready")
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(theirs,))
    process.start()
    assert ours.poll(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.timeout(120)
def test_a_second_process_on_the_same_shards_is_refused(path, holder):
    with pytest.raises(StoreBusyError) as caught:
        open_writer(path)
    assert f"another process is writing there ({path})" in str(caught.value)
    assert "shards 0 .. 2" in str(caught.value)
    with open_writer(path, part=Part(index=1, count=2)) as writer:
        assert writer.missing_shards() == [1, 2]


@pytest.mark.timeout(120)
def test_a_refused_process_holds_nothing(path, holder):
    with pytest.raises(StoreBusyError):
        open_writer(path)
    held = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    assert str(path / "manifest" / "lock") not in held


@pytest.mark.timeout(120)
def test_a_killed_process_holds_nothing(path, holder):
    holder.kill()
    holder.join(60)
    with open_writer(path) as writer:
        assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_parts_gives_the_same_bytes(path, tmp_path, count):
    for index in range(count):
        with open_writer(path, part=Part(index=index, count=count)) as writer:
            fill(writer)
            assert writer.seal() == (index == count - 1)
    assert contents(path) == contents(make_store(tmp_path / "whole.zarr"))


@pytest.mark.parametrize("total", [0, 1, 7, 100])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_parts_are_disjoint_and_complete(total, count):
    parts = [Part(index=index, count=count).shards(total) for index in range(count)]
    assert [shard for part in parts for shard in part] == list(range(total))


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0)])
def test_no_such_part(index, count):
    with pytest.raises(ConfigError, match=f"got {index}/{count}"):
        Part(index=index, count=count)


def test_parts_as_they_are_written():
    assert Part.parse("2/8") == Part(index=2, count=8)
    assert Part.of_rank({"RANK": "3", "WORLD_SIZE": "4"}) == Part(index=3, count=4)
    assert Part.of_rank({}) == Part()
    for text in ("", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(ConfigError, match="i/n"):
            Part.parse(text)


def test_a_full_disk_is_an_error_and_can_be_resumed(path, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_writer(path) as writer:
        fill(writer, [0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            with pytest.raises(StoreError) as caught:
                fill(writer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the store cannot be written" in str(caught.value)
    assert "File too large" in str(caught.value)
    with pytest.raises(UnsealedError):
        TeacherCache(path)
    assert contents(make_store(path)) == contents(make_store(tmp_path / "whole.zarr"))


def test_no_space_left_names_the_cure(path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError) as caught:
        open_writer(path)
    assert "No space left on device. Free some space and run this again to resume." in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        open_writer(tmp_path / "teacher.zarr")


def test_a_sealed_store_needs_no_right_to_write(path, monkeypatch):
    make_store(path)
    monkeypatch.setattr("cache.store.writer.Leases", None)
    with open_writer(path) as writer:
        assert writer.sealed


def test_samples_must_fit_and_be_all_there(path):
    with open_writer(path) as writer:
        shard = writer.shard(0)
        sample = make_sample(writer.spec, 0)
        shard.add([sample])
        with pytest.raises(StoreError, match="before all its samples were added"):
            shard.commit()
        with pytest.raises(StoreError, match=r"does not fit its array \(heatmap\)"):
            sample.arrays["heatmap"] = sample.arrays["heatmap"][:, :1]
            shard.add([sample])


def test_tokens_must_be_those_of_the_spec(path):
    tokens = make_tokens(10)
    spec = make_spec(tokens)
    with pytest.raises(DataError, match="not those of the spec"):
        StoreWriter(path, spec, tokens[:9], head_weights={}, software={}, layout=Layout())
    with pytest.raises(DataError, match="2 tokens, 1 different"):
        StoreWriter(path, spec, ("a", "a"), head_weights={}, software={}, layout=Layout())


def test_clocks_do_not_matter(path, monkeypatch):
    with open_writer(path) as writer:
        fill(writer, [0])
    for file in path.rglob("*"):
        os.utime(file, (2**31, 2**31))  # 2038: from the future
    with open_writer(path) as writer:
        assert writer.missing_shards() == [1, 2]


def test_nothing_is_pickled_and_metadata_is_json(path):
    make_store(path)
    for file in path.rglob("*.json"):
        json.loads(file.read_text())
    assert not [name for name, data in contents(path).items() if b"pickle" in data or name.endswith((".pt", ".pkl"))]
