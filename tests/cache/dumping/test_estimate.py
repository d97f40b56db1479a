from dataclasses import replace

import pytest
from rich.console import Console

from cache.dumping.estimate import plan
from cache.dumping.run import dump
from cache.errors import StoreError
from cache.geometry.views import ViewsConfig
from cache.visualization.summary import plan_tables
from tests.factories.stores import SmallFrames, SmallTeacher, make_config


@pytest.fixture
def frames(tmp_path):
    return SmallFrames(root=tmp_path / "points", count=20)


def stored_bytes(path) -> int:
    small = ("token", "token_order", "view_matrix")
    return sum(file.stat().st_size for file in path.rglob("c.*") if file.parent.name not in small)


def test_the_plan_is_what_the_dump_takes(frames, tmp_path):
    path = tmp_path / "teacher.zarr"
    planned = plan(make_config(), frames, SmallTeacher(), path, probes=8)
    assert not path.exists()
    dump(make_config(), frames, SmallTeacher(), path)
    assert planned.samples == 20
    assert planned.total_bytes == pytest.approx(stored_bytes(path), rel=0.05)
    shards = [file for file in path.rglob("*") if file.name.startswith("c.") and file.name.count(".") > 2]
    records = list((path / "manifest").glob("*.json"))
    small = [file for file in shards if file.parent.name in ("token", "view_matrix")]
    assert planned.files == len(shards) - len(small) + len(records)


def test_views_multiply_size_and_time(frames, tmp_path):
    config = make_config(views=ViewsConfig(reflections=2, drawn=1))
    planned = plan(config, frames, SmallTeacher(), tmp_path / "teacher.zarr", probes=8)
    dump(config, frames, SmallTeacher(), tmp_path / "teacher.zarr")
    assert planned.total_bytes == pytest.approx(stored_bytes(tmp_path / "teacher.zarr"), rel=0.05)
    assert [view.name for view in planned.views] == ["canonical", "flip_y", "drawn0"]
    assert sum(view.bytes for view in planned.views) == pytest.approx(planned.bytes_per_sample)
    one = plan(make_config(), frames, SmallTeacher(), tmp_path / "teacher.zarr", probes=8)
    assert planned.views[0].bytes == pytest.approx(one.bytes_per_sample)
    assert sum(view.seconds for view in planned.views) < planned.seconds_per_sample
    console = Console(width=200, record=True)
    with console.capture() as captured:
        console.print(plan_tables(planned)[1])
    lines = captured.get().splitlines()
    (row,) = [line for line in lines if "flip_y" in line]
    assert f"{planned.views[1].bytes:,.0f}" in row


def test_the_table_names_arrays_and_totals(frames, tmp_path):
    planned = plan(make_config(), frames, SmallTeacher(), tmp_path / "teacher.zarr")
    console = Console(width=200, record=True)
    with console.capture() as captured:
        console.print(plan_tables(planned)[0])
    text = " ".join(captured.get().split())  # a title that is wider than its table is folded
    assert "20 samples" in text
    assert "features/head_scale" in text
    assert "dB" in text


def test_a_plan_without_room_is_refused(frames, tmp_path):
    planned = plan(make_config(), frames, SmallTeacher(), tmp_path / "teacher.zarr")
    planned.require_room()
    with pytest.raises(StoreError) as caught:
        replace(planned, free_bytes=10).require_room()
    assert "the store will not fit on its disk" in str(caught.value)
    assert "GB for 20 samples. Dump fewer views, layers or splits" in str(caught.value)
