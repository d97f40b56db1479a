import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.crash import contents
from cache.dumping.run import DumpProgress, dump
from cache.errors import ConfigError, DataError, MismatchError, TeacherError, UnsealedError
from cache.nuscenes import loader
from cache.nuscenes.points import load_points
from cache.spec import CodecSpec
from cache.store.codec import encode
from cache.store.partition import Part
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from tests.factories.stores import CANVAS, SmallFrames, SmallTeacher, make_config


@pytest.fixture
def frames(tmp_path):
    return SmallFrames(root=tmp_path / "points")


@pytest.fixture
def teacher():
    return SmallTeacher()


def test_the_store_holds_the_teachers_output(frames, teacher, tmp_path):
    report = dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")
    assert (report.samples, report.written, report.sealed) == (10, 10, True)
    cache = TeacherCache(tmp_path / "teacher.zarr")
    assert tuple(cache.tokens) == frames.tokens
    for position in (0, 5, 9):
        output = teacher([teacher.prepare(TeacherInput.of_points(load_points(frames[position], teacher.points)))])
        sample = cache[frames.tokens[position]]
        for name, layer in output.layers.items():
            expected = encode(layer, CodecSpec()).decode()
            assert torch.allclose(sample.features[name].decode(), expected, atol=1e-5)
        assert (sample.heatmap / 255 - output.heatmap).abs().max() <= 0.5 / 255 + 1e-5
        assert torch.equal(sample.canvas_mask, output.canvas_mask)
        assert torch.allclose(sample.head_maps["reg"].float(), output.head_maps["reg"], atol=1e-2)


def test_the_spec_records_teacher_and_data(frames, teacher, tmp_path):
    dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")
    cache = TeacherCache(tmp_path / "teacher.zarr")
    assert cache.spec.teacher == teacher.identity
    assert cache.spec.points == teacher.points
    assert {layer.name: layer.channels for layer in cache.spec.layers} == {"head": 6, "backbone0": 4}
    assert cache.spec.head_maps == {"reg": 2}
    assert cache.spec.data.samples == 10
    assert {"python", "torch", "numpy", "numcodecs"} <= set(cache.attributes.software)
    assert torch.equal(cache.head_weights()["reg.bias"], teacher.head["reg"].bias)


def test_the_measured_error_is_kept(frames, teacher, tmp_path):
    dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")
    report = TeacherCache(tmp_path / "teacher.zarr").attributes.codec_report
    signal = noise = largest = 0.0
    for position in range(10):
        layer = teacher(
            [teacher.prepare(TeacherInput.of_points(load_points(frames[position], teacher.points)))]
        ).layers["head"]
        error = layer - encode(layer, CodecSpec()).decode()
        signal, noise = signal + layer.square().sum().item(), noise + error.square().sum().item()
        largest = max(largest, error.abs().max().item())
    assert report["head"].sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert report["head"].largest_error == pytest.approx(largest, rel=1e-3)
    assert report["head"].saturated_fraction == 0


def test_a_second_run_does_nothing_and_reports_it(frames, teacher, tmp_path):
    path = tmp_path / "teacher.zarr"
    dump(make_config(), frames, teacher, path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    report = dump(make_config(), frames, teacher, path)
    assert (report.written, report.sealed) == (0, True)
    assert str(report) == f"{path}: all 10 samples were there already, nothing to do"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_parts_report_the_truth_about_the_part_and_the_store(frames, teacher, tmp_path):
    path = tmp_path / "teacher.zarr"  # 10 samples in 3 shards: 4, 4 and 2

    def run(index: int, count: int) -> str:
        return str(dump(make_config(), frames, teacher, path, part=Part(index=index, count=count)))

    assert "part 0/16 has no shard to write, there are fewer shards than parts; not complete yet" in run(0, 16)
    assert run(0, 2).endswith("not complete yet: other parts still write 6 samples")
    again = "all 4 samples of part 0/2 were there already; not complete yet: other parts still write 6 samples"
    assert run(0, 2) == f"{path}: {again}"
    assert run(1, 2).startswith(f"{path}: 6 of 10 samples written")
    assert run(0, 2) == f"{path}: all 4 samples of part 0/2 were there already; complete"


def test_progress_reports_rates(frames, teacher, tmp_path):
    reports: list[DumpProgress] = []
    dump(make_config(), frames, teacher, tmp_path / "teacher.zarr", progress=reports.append)
    assert [each.done for each in reports] == [3, 4, 7, 8, 10]  # batches do not cross shards of 4
    assert {each.total for each in reports} == {10}
    assert reports[-1].left_s == 0
    assert reports[0].samples_per_s > 0
    assert 500 < reports[-1].bytes_per_sample < 5000


def test_workers_give_the_same_bytes(frames, teacher, tmp_path):
    dump(make_config(), frames, teacher, tmp_path / "one.zarr")
    dump(make_config(workers=2), frames, teacher, tmp_path / "two.zarr")
    assert contents(tmp_path / "one.zarr") == contents(tmp_path / "two.zarr")


def test_little_shared_memory_is_named_and_a_dump_without_workers_goes_on(frames, teacher, tmp_path, monkeypatch):
    path = tmp_path / "teacher.zarr"
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"need more shared memory than there is .*expected 0.0 MB: 2 batches"):
        dump(make_config(workers=1), frames, teacher, path)
    assert dump(make_config(workers=0), frames, teacher, path).sealed


def test_an_interrupted_dump_resumes_to_the_same_bytes(frames, teacher, tmp_path):
    whole, resumed = tmp_path / "whole.zarr", tmp_path / "resumed.zarr"
    dump(make_config(), frames, teacher, whole)

    def stop(progress: DumpProgress) -> None:
        if progress.done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(UnsealedError) as caught:
        dump(make_config(), frames, teacher, resumed, progress=stop)
    assert "Run the same command again to resume" in str(caught.value)
    assert not list(resumed.rglob("*.partial"))
    report = dump(make_config(), frames, teacher, resumed)
    assert report.written < 10
    assert contents(resumed) == contents(whole)


def test_another_teacher_is_refused_and_nothing_is_touched(frames, teacher, tmp_path):
    path = tmp_path / "teacher.zarr"
    dump(make_config(), frames, teacher, path)
    before = contents(path)
    with pytest.raises(MismatchError) as caught:
        dump(make_config(), frames, SmallTeacher(seed=1), path)
    assert "teacher.weights_sha256: stored '000" in str(caught.value)
    assert contents(path) == before


def test_features_that_are_not_finite_stop_the_dump(frames, teacher, tmp_path):
    path = tmp_path / "teacher.zarr"
    whole = teacher.forward

    def broken(prepared):
        output = whole(prepared)
        if len(prepared) == 1 and calls.append(1) is None and len(calls) == 3:
            output.layers["head"][0, 2, 0, 0] = np.nan
        return output

    calls: list[int] = []
    teacher.forward = broken
    with pytest.raises(TeacherError) as caught:
        dump(make_config(batch_size=1), frames, teacher, path)
    assert f"not finite (layer head, token {frames.tokens[1]}, channel 2)" in str(caught.value)
    teacher.forward = whole
    assert TeacherCache(path, allow_partial=True).tokens == ()
    dump(make_config(batch_size=1), frames, teacher, path)
    dump(make_config(batch_size=1), frames, teacher, tmp_path / "whole.zarr")
    assert contents(path) == contents(tmp_path / "whole.zarr")


def test_a_heatmap_that_is_no_probability(frames, teacher, tmp_path):
    teacher.head["heatmap"].bias.fill_(np.nan)
    with pytest.raises(TeacherError, match=f"no probability \\(token {frames.tokens[0]}\\)"):
        dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")


def test_a_head_map_beyond_float16(frames, teacher, tmp_path):
    teacher.head["reg"].bias.fill_(1e6)
    with pytest.raises(TeacherError) as caught:
        dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")
    assert f"head map reg, token {frames.tokens[0]}" in str(caught.value)
    assert "head_maps: false" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_points_name_the_file_and_the_token(frames, teacher, tmp_path, workers):
    bad = tmp_path / "points" / f"{frames.tokens[6]}.bin"
    bad.write_bytes(b"\x00" * 7)
    with pytest.raises(DataError) as caught:
        dump(make_config(workers=workers), frames, teacher, tmp_path / "teacher.zarr")
    assert f"({bad}, token {frames.tokens[6]})" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_negative_layer_with_an_unsigned_codec(frames, teacher, tmp_path):
    teacher.neck.bias.fill_(1.0)
    relu = teacher.forward

    def shifted(prepared):
        output = relu(prepared)
        output.layers["head"].sub_(0.5)
        return output

    teacher.forward = shifted
    with pytest.raises(ConfigError, match="codec kind to signed"):
        dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")


def test_a_loss_above_the_budget_stops_the_dump(frames, teacher, tmp_path):
    config = make_config(layers={"head": CodecSpec(bits=4, min_sqnr_db=60)})
    with pytest.raises(ConfigError) as caught:
        dump(config, frames, teacher, tmp_path / "teacher.zarr")
    assert "more of a layer than its budget allows (layer head, shard 0)" in str(caught.value)
    assert "at least 60 dB" in str(caught.value)
    assert TeacherCache(tmp_path / "teacher.zarr", allow_partial=True).tokens == ()


def test_an_unknown_layer_lists_the_known_ones(frames, teacher, tmp_path):
    config = make_config(layers={"neck": CodecSpec()})
    with pytest.raises(ConfigError, match="got neck; expected some of backbone0, head"):
        dump(config, frames, teacher, tmp_path / "teacher.zarr")
    assert not (tmp_path / "teacher.zarr").exists()


def test_a_map_that_does_not_fit_its_grid(frames, teacher, tmp_path):
    teacher.layer_grids["head"] = CANVAS
    with pytest.raises(TeacherError) as caught:
        dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")
    assert "(layer head); got (6, 8); expected (12, 16)" in str(caught.value)


def test_frames_with_too_few_sweeps(frames, teacher, tmp_path):
    frames = replace(frames, max_sweeps=0)
    with pytest.raises(ConfigError, match="fewer sweeps"):
        dump(make_config(), frames, teacher, tmp_path / "teacher.zarr")


def test_without_head_maps(frames, teacher, tmp_path):
    dump(make_config(head_maps=False), frames, teacher, tmp_path / "teacher.zarr")
    root = json.loads((tmp_path / "teacher.zarr" / "zarr.json").read_text())
    assert not [name for name in root["consolidated_metadata"]["metadata"] if name.startswith("boxes_")]
    assert TeacherCache(tmp_path / "teacher.zarr")[frames.tokens[0]].head_maps == {}
