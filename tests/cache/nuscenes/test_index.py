"""The index: kept, shared, made again when it must be; real processes, real damage, a real full disk."""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import DataError, OfflineDistillWarning
from cache.nuscenes import index as index_module
from cache.nuscenes import index_files
from cache.nuscenes.columns import Columns
from cache.nuscenes.compile import compile_tables
from cache.nuscenes.index import index_folder, open_index
from cache.nuscenes.index_files import TableIndex
from tests.factories.tables import Tables, make_tables, write_tables

VERSION = "v1.0-mini"


@pytest.fixture
def tables() -> Tables:
    return make_tables()


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indexes are kept, an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return index_folder()


@pytest.fixture
def root(tmp_path: Path, tables: Tables) -> Path:
    return write_tables(tmp_path / "data", tables)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A line for each time that tables are compiled."""
    calls = []

    def counted(folder: Path, advance: Callable[[int], None]) -> Any:
        calls.append(folder)
        return compile_tables(folder, advance)

    monkeypatch.setattr(index_module, "compile_tables", counted)
    return calls


def indexes(kept: Path) -> list[Path]:
    return sorted(path for path in kept.iterdir() if path.is_dir())


def same(ours: Columns, theirs: Columns) -> bool:
    return all(
        np.array_equal(
            getattr(ours, f.name), getattr(theirs, f.name), equal_nan=getattr(ours, f.name).dtype.kind == "f"
        )
        for f in fields(Columns)
    )


def test_an_index_is_made_once(root: Path, kept: Path, compiled: list[Path]) -> None:
    first, second = open_index(root, VERSION), open_index(root, VERSION)
    assert len(compiled) == 1
    assert first.path == second.path == indexes(kept)[0]
    assert same(second.columns, compile_tables(root / VERSION)[0])
    assert not any(getattr(second.columns, f.name).flags.writeable for f in fields(Columns))


def test_progress_is_in_megabytes_of_the_tables(root: Path, capsys: pytest.CaptureFixture) -> None:
    calls: list[tuple[int, int]] = []
    open_index(root, VERSION, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (0, 0)
    open_index(root, VERSION)
    assert capsys.readouterr().err == ""  # Small tables are read without a bar.


def test_an_edited_table_is_read_again(root: Path, tables: Tables, kept: Path, compiled: list[Path]) -> None:
    before = open_index(root, VERSION)
    tables["sample_annotation"].pop()
    write_tables(root, tables)
    after = open_index(root, VERSION)
    assert (len(before.columns.box_center), len(after.columns.box_center)) == (5, 4)
    assert len(compiled) == 2
    assert indexes(kept) == [after.path]  # The stale one is gone, and whoever has it open reads on.
    assert before.columns.box_center.sum() != after.columns.box_center.sum()


def test_an_edit_that_keeps_the_size_is_seen(root: Path, compiled: list[Path]) -> None:
    open_index(root, VERSION)
    path = root / VERSION / "sample_annotation.json"
    path.write_text(path.read_text().replace("211", "219"))
    assert open_index(root, VERSION).columns.box_center[0, 1] == 219
    assert len(compiled) == 2


def test_a_table_that_was_cut_is_named_though_an_index_exists(root: Path, kept: Path) -> None:
    open_index(root, VERSION)
    path = root / VERSION / "ego_pose.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError, match=r"a nuScenes table cannot be read .*ego_pose\.json\); got DecodeError: .*Unpack"
    ):
        open_index(root, VERSION)
    assert not [path for path in kept.iterdir() if path.suffix == ".tmp"]


def test_a_table_that_is_gone_is_named_though_an_index_exists(root: Path) -> None:
    open_index(root, VERSION)
    (root / VERSION / "sensor.json").unlink()
    with pytest.raises(DataError, match=r"cannot be read .*sensor\.json\); got FileNotFoundError"):
        open_index(root, VERSION)


def test_tables_that_change_while_they_are_read_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edited(folder: Path, advance: Callable[[int], None]) -> Any:
        found = compile_tables(folder, advance)
        (folder / "attribute.json").write_text("[ ]")
        return found

    monkeypatch.setattr(index_module, "compile_tables", edited)
    with pytest.raises(
        DataError, match=r"the tables changed while they were read .*Run it again once nothing writes there"
    ):
        open_index(root, VERSION)


@pytest.mark.parametrize("name", ["box_center.npy", "sample_token.npy", "index.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_index_is_made_again(root: Path, name: str, damage: str, compiled: list[Path]) -> None:
    made = open_index(root, VERSION)
    path, expected = made.path / name, made.columns
    content = path.read_bytes()
    expected = Columns(**{f.name: np.array(getattr(expected, f.name)) for f in fields(Columns)})
    path.unlink()
    if damage == "flip":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    with pytest.warns(OfflineDistillWarning, match=rf"is damaged \({path.stem}.*\) and is made again"):
        again = open_index(root, VERSION)
    assert len(compiled) == 2
    assert same(again.columns, expected)


def test_one_process_makes_it_while_others_wait(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"

    def slow(folder: Path, advance: Callable[[int], None]) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return compile_tables(folder, advance)

    monkeypatch.setattr(index_module, "compile_tables", slow)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=lambda: results.put(len(open_index(root, VERSION).tokens))) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [2] * 4
    for worker in workers:
        worker.join()
    assert len(log.read_text().split()) == 1


def test_a_process_that_is_killed_leaves_nothing_that_is_trusted(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(index_files.msgspec.json, "encode", killed)  # After the columns, before the record of them.
        worker = multiprocessing.get_context("fork").Process(target=open_index, args=(root, VERSION))
        worker.start()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    (leftover,) = indexes(kept)
    assert leftover.suffix == ".tmp"
    made = open_index(root, VERSION)
    assert indexes(kept) == [made.path]


def test_a_full_disk_keeps_nothing_and_goes_on(root: Path, kept: Path) -> None:
    """No file may grow beyond 300 bytes, as on a disk that fills up while the index is written."""

    def limited(results: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            index = open_index(root, VERSION)
        results.put((index.path, index.tokens, [str(entry.message) for entry in caught]))

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=limited, args=(results,))
    worker.start()
    path, tokens, messages = results.get()
    worker.join()
    assert (path, tokens) == (None, ("first", "second"))
    (message,) = messages
    assert "cannot be kept in" in message
    assert "in this process's memory" in message
    assert "free some space" in message
    assert indexes(kept) == []
    assert open_index(root, VERSION).path is not None


def test_a_cache_folder_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(OfflineDistillWarning, match=r"cannot be kept in .*Not a directory.*XDG_CACHE_HOME"):
        index = open_index(root, VERSION)
    assert index.path is None
    copy = pickle.loads(pickle.dumps(index))
    assert same(copy.columns, index.columns)


def test_an_index_is_pickled_as_its_path(root: Path) -> None:
    index = open_index(root, VERSION)
    sent = pickle.dumps(index)
    assert len(sent) < 500
    assert same(pickle.loads(sent).columns, index.columns)
    for file in index.path.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"the index of the tables is gone .*Run the command again"):
        pickle.loads(sent)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_open_the_same_index(root: Path, method: str) -> None:
    index = open_index(root, VERSION)
    context: BaseContext = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply(_row_of, (index, "second")) == 1


def _row_of(index: TableIndex, token: str) -> int | None:
    return index.row(token)


def test_rows_by_token(root: Path) -> None:
    index = open_index(root, VERSION)
    assert index.tokens == ("first", "second")
    np.testing.assert_array_equal(index.rows(("second", "third", "", "first")), [1, -1, -1, 0])
    assert (index.row("second"), index.row("zzz")) == (1, None)


@pytest.mark.parametrize(
    ("table", "field", "target"),
    [
        ("instance", "category_token", "category"),
        ("calibrated_sensor", "sensor_token", "sensor"),
        ("sample", "scene_token", "scene"),
        ("sample", "prev", "sample"),
        ("sample_data", "sample_token", "sample"),
        ("sample_data", "ego_pose_token", "ego_pose"),
        ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
        ("sample_data", "prev", "sample_data"),
        ("sample_annotation", "sample_token", "sample"),
        ("sample_annotation", "instance_token", "instance"),
        ("sample_annotation", "prev", "sample_annotation"),
        ("sample_annotation", "next", "sample_annotation"),
    ],
)
def test_a_dangling_token_is_named(tmp_path: Path, tables: Tables, table: str, field: str, target: str) -> None:
    record = tables[table][0]
    record[field] = "nowhere"
    root = write_tables(tmp_path / "data", tables)
    with pytest.raises(DataError) as caught:
        open_index(root, VERSION)
    assert str(caught.value) == (
        f"a nuScenes table refers to a record that is not there ({root / VERSION / table}.json); got {field} "
        f"'nowhere' in record {record['token']}; expected a record of {target}.json. Unpack the tables again, or "
        "correct them if they are of your own making."
    )


def test_a_dangling_attribute_is_named(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"][0]["attribute_tokens"] = ["nowhere"]
    with pytest.raises(
        DataError, match=r"sample_annotation\.json\); got attribute_tokens 'nowhere' in record car first"
    ):
        open_index(write_tables(tmp_path / "data", tables), VERSION)


def test_a_token_that_is_there_twice_is_named(tmp_path: Path, tables: Tables) -> None:
    tables["sample"].append(dict(tables["sample"][0]))
    with pytest.raises(DataError, match=r"a nuScenes table holds a token twice .*sample\.json\); got first"):
        open_index(write_tables(tmp_path / "data", tables), VERSION)


@pytest.mark.parametrize(("factor", "got"), [(1e-6, "0.5"), (1e-3, "a median of 500")])
def test_times_in_other_units_are_refused(tmp_path: Path, tables: Tables, factor: float, got: str) -> None:
    for record in (*tables["sample"], *tables["sample_data"]):
        record["timestamp"] *= factor
        if record["timestamp"] == int(record["timestamp"]):
            record["timestamp"] = int(record["timestamp"])
    with pytest.raises(DataError, match=rf"times are not in microseconds .*sample\.json\); got {got}.*in microseconds"):
        open_index(write_tables(tmp_path / "data", tables), VERSION)


def test_a_row_without_a_field_is_named(tmp_path: Path, tables: Tables) -> None:
    del tables["sample_annotation"][2]["num_lidar_pts"]
    with pytest.raises(
        DataError, match=r"sample_annotation\.json\); got .*missing required field `num_lidar_pts`.*\[2\]"
    ):
        open_index(write_tables(tmp_path / "data", tables), VERSION)


def test_boxes_are_sorted_by_key_frame(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"].reverse()
    columns = open_index(write_tables(tmp_path / "data", tables), VERSION).columns
    np.testing.assert_array_equal(columns.sample_boxes, [0, 1, 5])
    assert columns.box_center[0, 1] == 211
    assert (columns.box_next[0], columns.box_previous[4]) == (4, 0)


def test_maps_logs_and_visibilities_are_not_needed(root: Path) -> None:
    for name in ("map", "log", "visibility"):
        (root / VERSION / f"{name}.json").unlink()
    assert open_index(root, VERSION).tokens == ("first", "second")


def test_any_layout_of_json_is_read(root: Path, tables: Tables) -> None:
    compact = open_index(root, VERSION).columns
    for name, rows in tables.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows, indent=1))
    assert same(open_index(root, VERSION).columns, compact)


@pytest.fixture
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("_no_warnings")
def test_empty_tables_have_an_index(tmp_path: Path, tables: Tables) -> None:
    for name in ("sample", "sample_data", "sample_annotation", "instance", "scene", "ego_pose"):
        tables[name] = []
    index = open_index(write_tables(tmp_path / "data", tables), VERSION)
    assert index.tokens == ()
    assert index.row("first") is None
