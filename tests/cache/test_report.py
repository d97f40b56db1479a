import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from cache.reader import TeacherCache
from cache.report import describe, figure, statistics, statistics_table


def text_of(tables) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.fixture
def cache(sealed_store) -> TeacherCache:
    return TeacherCache(sealed_store)


def test_a_store_in_tables(cache):
    text = text_of(describe(cache))
    assert cache.spec.fingerprint in text
    assert "10 of v1.0-mini, mini_train; complete" in text
    assert "small, checkpoint weights aaaaaaaaaaaa" in text
    assert "car, pedestrian, traffic_cone" in text
    assert "6 x 6 x 8" in text
    assert "x -8 .. 8 m, y -6 .. 6 m, cells 2 x 2 m, lidar" in text
    assert "unsigned, 8 bits" in text
    assert f"{cache.attributes.codec_report['head'].sqnr_db:.1f} dB" in text


def test_sizes_are_those_on_disk(cache, sealed_store):
    text = text_of(describe(cache))
    stored = sum(file.stat().st_size for file in (sealed_store / "heatmap").glob("c.*")) / 10
    float32 = 4 * 3 * 6 * 8
    row = next(line for line in text.splitlines() if "heatmap" in line)
    assert f"{stored:,.0f}" in row
    assert f"{float32:,.0f}" in row
    assert f"{float32 / stored:.1f} x" in row


def test_an_unfinished_store_is_described_too(kit, tmp_path):
    with kit.open_writer(tmp_path / "teacher.zarr") as writer:
        kit.fill(writer, [1])
    assert "4 committed so far" in text_of(describe(TeacherCache(tmp_path / "teacher.zarr", allow_partial=True)))


def test_statistics_by_an_independent_way(kit, cache):
    found = statistics(cache, samples=100)["head"]
    samples = [kit.make_sample(cache.spec, position).arrays for position in range(10)]
    values = np.stack([s["features/head"] * s["features/head_scale"][..., None, None] for s in samples])
    assert found.mean == pytest.approx(values.mean(), rel=1e-5)
    assert found.std == pytest.approx(values.std(ddof=1), rel=1e-5)
    assert found.largest == pytest.approx(values.max(), rel=1e-5)
    assert found.zeros == pytest.approx((values == 0).mean(), rel=1e-5)
    assert f"{found.zeros:.1%}" in text_of([statistics_table({"head": found})])


def test_a_figure_shows_every_map(kit, cache):
    picture = figure(cache[kit.make_tokens(10)[0]])
    titles = [axis.get_title() for axis in picture.axes]
    assert titles == [
        "head: 6 x 6 x 8",
        "backbone0: 4 x 12 x 16",
        "backbone1: 3 x 6 x 8",
        "heatmap, max over classes",
        "canvas mask",
    ]
    assert kit.make_tokens(10)[0] in picture.get_suptitle()
    plt.close(picture)
