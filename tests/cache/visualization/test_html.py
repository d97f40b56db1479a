import numpy as np
import pytest
from rich.console import Console

from cache.geometry.views import DrawnViews
from cache.store.reader import TeacherCache
from cache.visualization.html import to_html
from cache.visualization.pictures import plot
from cache.visualization.summary import store_tables
from tests.factories.stores import fill, make_spec, make_store, open_writer

EVIL = "<script>alert(1)</script>"


def text_of(tables) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_a_store_in_tables(cache) -> None:
    text = text_of(store_tables(cache))
    assert cache.spec.fingerprint in text
    assert "10 of v1.0-mini, mini_train" in text
    assert "complete" in text
    assert "small, checkpoint weights aaaaaaaaaaaa" in text
    assert "car, pedestrian, traffic_cone" in text
    assert "6 x 6 x 8" in text
    assert "x -8 .. 8 m, y -6 .. 6 m, cells 2 x 2 m, lidar" in text
    assert "unsigned, 8 bits" in text
    assert f"{cache.attributes.codec_report['head'].sqnr_db:.1f} dB" in text


def test_sizes_are_those_on_disk(cache, sealed_store) -> None:
    float32 = 4 * 3 * 6 * 8
    files = {int(file.name.split(".")[1]): file.stat().st_size for file in (sealed_store / "heatmap").glob("c.*")}
    for shards, stored in ((None, sum(files.values()) / 10), ([2], files[2] / 2)):
        row = next(line for line in text_of(store_tables(cache, shards)).splitlines() if "heatmap" in line)
        assert f"{stored:,.0f}" in row
        assert f"{float32:,.0f}" in row
        assert f"{float32 / stored:.1f} x" in row


def test_an_unfinished_store_is_described_too(tmp_path) -> None:
    with open_writer(tmp_path / "teacher.zarr") as writer:
        fill(writer, [1])
    cache = TeacherCache(tmp_path / "teacher.zarr", allow_partial=True)
    assert "not complete: 4 samples are committed so far" in text_of(store_tables(cache))
    assert "4 samples, not complete" in repr(cache)
    assert to_html(cache).count("<img") == 5


def test_a_store_without_a_sample_has_html(tmp_path) -> None:
    open_writer(tmp_path / "teacher.zarr").close()
    cache = TeacherCache(tmp_path / "teacher.zarr", allow_partial=True)
    assert "<img" not in to_html(cache)
    assert "0 samples" in repr(cache)


def test_reprs_name_content_and_shapes(cache) -> None:
    token = cache.tokens[0]
    assert repr(cache.spec) == (
        "CacheSpec(small on 10 of v1.0-mini, mini_train: head 6 x 6 x 8, backbone0 4 x 12 x 16, backbone1 3 x 6 x 8; "
        f"{cache.spec.fingerprint[:12]})"
    )
    assert repr(cache) == f"TeacherCache({str(cache.path)!r}, 10 samples: {cache.spec!r})"
    assert repr(cache[token]).startswith(f"TeacherSample({token!r}: head uint8 1 x 6 x 6 x 8, backbone0 int8 1 x 4")
    assert repr(cache.read([token, token])).startswith("TeacherBatch(2 tokens: head uint8 2 x 6 x 6 x 8")
    assert repr(cache[token].features["head"]) == "Encoded(uint8 1 x 6 x 6 x 8; unsigned, 8 bits)"


def test_html_of_a_store_reads_one_shard_only(tmp_path) -> None:
    path = make_store(tmp_path / "teacher.zarr")
    for shard in (1, 2):
        for file in [*path.rglob(f"c.{shard}.*"), path / "manifest" / f"{shard}.json"]:
            file.unlink()
    assert to_html(TeacherCache(path)).count("<img") == 5


def test_names_in_the_data_are_escaped(tmp_path) -> None:
    teacher = make_spec(("a",)).teacher.model_copy(update={"name": EVIL, "tasks": ((EVIL,), ("b", "c"))})
    cache = TeacherCache(make_store(tmp_path / f"{EVIL.replace('/', '')}.zarr", count=2, teacher=teacher))
    for shown in (cache, cache.spec, cache[cache.tokens[0]], cache.read(cache.tokens[:1])):
        assert "<script" not in to_html(shown)
    assert "&lt;script&gt;" in to_html(cache)


def test_views_are_described_and_plotted(tmp_path) -> None:
    how = DrawnViews(seed=4)
    cache = TeacherCache(make_store(tmp_path / "teacher.zarr", views=("canonical", "drawn0"), drawn=how))
    assert "canonical, drawn0; drawn with seed 4: rotation_deg (-22.5, 22.5), scale (0.95, 1.05)" in text_of(
        store_tables(cache)
    )
    sample = cache[cache.tokens[2]]
    assert plot(sample).get_suptitle() == f"token {cache.tokens[2]}"
    picture = plot(sample, cache.view("drawn0"))
    assert picture.get_suptitle() == f"token {cache.tokens[2]}, view drawn0"
    np.testing.assert_array_equal(picture.axes[-1].images[0].get_array(), sample.canvas_mask[1].float())
