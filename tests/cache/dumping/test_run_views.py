"""Dumps of several views: the teacher really runs on the moved points, and every promise of a store still holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from benchmarks.crash import contents
from cache.dumping.run import DumpProgress, dump
from cache.dumping.verify import repair, verify
from cache.errors import CorruptStoreError, DataError, MismatchError, NotCachedError, TeacherError, UnsealedError
from cache.geometry.views import ViewsConfig, nearest_view, transform_boxes, transform_points, view_matrices
from cache.nuscenes.points import load_points
from cache.spec import CodecSpec
from cache.store.codec import encode
from cache.store.partition import Part
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from tests.factories.stores import CANVAS, SmallFrames, SmallTeacher, make_config

VIEWS = {"reflections": 2, "drawn": 2, "seed": 7}
NAMES = ("canonical", "flip_y", "drawn0", "drawn1")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder with the points of ten frames and a dump of four views, not to be written to."""
    folder = tmp_path_factory.mktemp("views")
    dump(config(), SmallFrames(root=folder / "points"), SmallTeacher(), folder / "teacher.zarr")
    return folder


@pytest.fixture
def frames(shared):
    return SmallFrames(root=shared / "points")


@pytest.fixture
def cache(shared) -> TeacherCache:
    return TeacherCache(shared / "teacher.zarr")


def config(**changes: object):
    return make_config(views=ViewsConfig(**VIEWS), **changes)


def test_each_view_holds_the_teachers_output_of_transformed_points(frames, cache):
    teacher = SmallTeacher()
    for position in (0, 5, 9):
        token = frames.tokens[position]
        sample, points = cache[token], load_points(frames[position], teacher.points)
        assert sample.views == NAMES
        for view in range(4):
            moved = points.astype(np.float64)
            moved[:, :3] = points[:, :3] @ sample.view_matrix[view, :3, :3].numpy().T.astype(np.float64)
            output = teacher([teacher.prepare(TeacherInput.of_points(moved.astype(np.float32)))])
            assert torch.equal(sample.canvas_mask[view], output.canvas_mask[0])
            assert (sample.heatmap[view] / 255 - output.heatmap[0]).abs().max() <= 0.5 / 255 + 1e-5
            for name, layer in output.layers.items():
                expected = encode(layer, CodecSpec()).decode()[0]
                torch.testing.assert_close(sample.features[name].decode()[view], expected, rtol=0, atol=1e-4)


def test_reflections_of_an_even_teacher_are_reflections(frames, tmp_path):
    """Kernels of ones do not know left from right: each view is then the canonical one mirrored, axis by axis."""
    teacher = SmallTeacher()
    for convolution in (teacher.backbone, teacher.neck):
        convolution.weight.fill_(1 / 64)  # a power of two: sums are exact in any order
        convolution.bias.zero_()
    dump(make_config(views=ViewsConfig(reflections=4)), frames, teacher, tmp_path / "teacher.zarr")
    sample = TeacherCache(tmp_path / "teacher.zarr")[frames.tokens[3]]
    assert sample.views == ("canonical", "flip_x", "flip_y", "flip_xy")
    assert torch.linalg.det(sample.view_matrix).tolist() == [1, -1, -1, 1]
    for maps in (sample.features["backbone0"].decode(), sample.heatmap, sample.canvas_mask):
        assert not torch.equal(maps[0], maps[0].flip(-1))
        for view, axes in enumerate([(), (-1,), (-2,), (-2, -1)]):
            assert torch.equal(maps[view], maps[0].flip(axes))


def test_box_points_and_peak_stay_together(frames, tmp_path):
    """A cluster of points is all there is; in each view the heatmap's centre of mass lies in the moved box."""
    box = np.array([[3.5, -2.5, 0, 2, 2, 2, 0.3, 1, 0]], np.float32)
    for seed, token in enumerate(frames.tokens):
        cluster = np.random.default_rng(seed).normal(box[0, [0, 1, 2, 0, 0]], 0.3, (200, 5))
        (tmp_path / "cluster").mkdir(exist_ok=True)
        (tmp_path / "cluster" / f"{token}.bin").write_bytes(cluster.astype(np.float32).tobytes())
    object.__setattr__(frames, "root", tmp_path / "cluster")
    teacher = SmallTeacher()
    for convolution in (teacher.backbone, teacher.neck):
        convolution.weight.fill_(0.01)
        convolution.bias.zero_()
    teacher.head["heatmap"].weight.fill_(1.0)
    teacher.head["heatmap"].bias.fill_(-4.0)
    views = ViewsConfig(reflections=4, drawn=3)
    dump(make_config(views=views), frames, teacher, tmp_path / "teacher.zarr")
    cache = TeacherCache(tmp_path / "teacher.zarr")
    centers_m = teacher.heatmap_grid.centers_m()
    for token in frames.tokens:
        sample = cache[token]
        points = load_points(frames[token], teacher.points)
        for view, matrix in enumerate(sample.view_matrix.numpy()):
            (moved,) = transform_boxes(box, matrix)
            np.testing.assert_allclose(transform_points(points, matrix)[:, :2].mean(axis=0), moved[:2], atol=0.1)
            energy = sample.heatmap[view, 0].numpy().astype(float)
            energy -= energy.min()
            centre_m = (centers_m * energy[..., None]).sum(axis=(0, 1)) / energy.sum()
            np.testing.assert_allclose(centre_m, moved[:2], atol=1.0)  # half a cell of the heatmap


def test_the_matrices_are_those_of_each_token(frames, cache):
    how = ViewsConfig(**VIEWS).drawn_views
    assert cache.spec.drawn == how
    expected = np.stack([view_matrices(NAMES, how, token) for token in frames.tokens])
    np.testing.assert_array_equal(cache.view_matrices(frames.tokens), expected)
    assert len(np.unique(expected[:, 2:].reshape(20, -1), axis=0)) == 20
    chosen = [9, 0, 9, 4]
    views = [3, 1, 2, 0]
    batch = cache.read([frames.tokens[i] for i in chosen], layers=["head"], views=views)
    np.testing.assert_array_equal(batch.view_matrix.numpy(), expected[chosen, views])
    for row, (position, view) in enumerate(zip(chosen, views, strict=True)):
        whole = cache[frames.tokens[position]]
        assert torch.equal(batch.features["head"].values[row], whole.features["head"].values[view])
        assert torch.equal(batch.heatmap[row], whole.heatmap[view])
        np.testing.assert_array_equal(whole.view_matrix.numpy(), expected[position])


def test_a_replayed_view_leaves_nothing_to_warp(frames, cache):
    stored = cache.view_matrices(frames.tokens)
    chosen = nearest_view(stored[:, 3], stored)
    assert chosen.tolist() == [3] * 10
    batch = cache.read(frames.tokens, layers=[], views=chosen.tolist())
    remaining = torch.from_numpy(stored[:, 3]) @ torch.linalg.inv(batch.view_matrix)
    torch.testing.assert_close(remaining, torch.eye(4).expand(10, 4, 4), rtol=0, atol=1e-6)


def test_plain_zarr_reads_all_views(shared, cache):
    group = zarr.open_group(shared / "teacher.zarr", mode="r")
    matrices = group["view_matrix"]
    assert matrices.metadata.dimension_names == ("sample", "view", "row", "column")
    np.testing.assert_array_equal(matrices[:], cache.view_matrices(cache.tokens))
    for row, token in enumerate(cache.tokens):
        np.testing.assert_array_equal(group["features/head"][row], cache[token].features["head"].values)
        np.testing.assert_array_equal(group["boxes_reg"][row], cache[token].head_maps["reg"])


def test_reflections_alone_have_one_matrix_for_all(frames, tmp_path):
    dump(make_config(views=ViewsConfig(reflections=4)), frames, SmallTeacher(), tmp_path / "teacher.zarr")
    matrices = zarr.open_group(tmp_path / "teacher.zarr", mode="r")["view_matrix"]
    assert matrices.shape == (4, 4, 4)
    assert matrices.metadata.dimension_names == ("view", "row", "column")
    cache = TeacherCache(tmp_path / "teacher.zarr")
    np.testing.assert_array_equal(cache.view_matrices(frames.tokens[:3]), np.stack([matrices[:]] * 3))


# The promises


def test_three_parts_workers_and_batches_of_one_part_give_the_same_bytes(frames, shared, tmp_path):
    for index in range(3):
        dump(config(workers=2), frames, SmallTeacher(), tmp_path / "parts.zarr", part=Part(index=index, count=3))
    assert contents(tmp_path / "parts.zarr") == contents(shared / "teacher.zarr")


def test_an_interrupted_dump_resumes_to_the_same_bytes(frames, shared, tmp_path):
    def stop(progress: DumpProgress) -> None:
        if progress.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(UnsealedError):
        dump(config(), frames, SmallTeacher(), tmp_path / "teacher.zarr", progress=stop)
    partial = TeacherCache(tmp_path / "teacher.zarr", allow_partial=True)
    assert tuple(partial.tokens) == frames.tokens[:4]
    assert partial[frames.tokens[2]].view_matrix.shape == (4, 4, 4)
    dump(config(), frames, SmallTeacher(), tmp_path / "teacher.zarr")
    assert contents(tmp_path / "teacher.zarr") == contents(shared / "teacher.zarr")


def test_damage_is_found_and_repaired(frames, shared, tmp_path):
    store = shutil.copytree(shared / "teacher.zarr", tmp_path / "teacher.zarr")
    flip(store / "features" / "head" / "c.1.0.0.0.0", 100)
    assert verify(store).damaged_shards == [1]
    flip(store / "view_matrix" / "c.0.0.0.0", 300)
    with pytest.raises(CorruptStoreError, match=r"view_matrix/c\.0\.0\.0\.0"):
        TeacherCache(store)
    assert "view_matrix" in str(verify(store))
    assert repair(store, config(), frames, SmallTeacher()).damage == ()
    assert contents(store) == contents(shared / "teacher.zarr")


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_other_matrices_are_not_mixed_in(frames, shared, tmp_path, monkeypatch):
    """A numpy that draws other numbers must not add samples to a store, nor rewrite its matrices in a repair."""
    store = shutil.copytree(shared / "teacher.zarr", tmp_path / "teacher.zarr")
    (store / "manifest" / "1.json").unlink()
    before = contents(store)
    monkeypatch.setattr("cache.store.metadata.view_matrices", lambda *of: 1.01 * view_matrices(*of))
    with pytest.raises(MismatchError, match="the drawn views are not those of the store"):
        repair(store, config(), frames, SmallTeacher())
    assert contents(store) == before


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ({**VIEWS, "seed": 8}, "drawn.seed: stored 7, expected 8"),
        ({**VIEWS, "drawn": 3}, r"views: stored \['canonical', 'flip_y', 'drawn0', 'drawn1'\], expected \["),
        ({}, r"drawn: stored \{'seed': 7.*expected None"),
    ],
)
def test_a_dump_of_other_views_is_refused(frames, shared, views, said):
    with pytest.raises(MismatchError, match=said):
        dump(make_config(views=ViewsConfig(**views)), frames, SmallTeacher(), shared / "teacher.zarr")


def test_the_losses_of_all_views_are_counted(frames, cache):
    teacher = SmallTeacher()
    signal = noise = 0.0
    for position, token in enumerate(frames.tokens):
        points = load_points(frames[position], teacher.points)
        for matrix in cache.view_matrices([token])[0]:
            layer = teacher([teacher.prepare(TeacherInput.of_points(transform_points(points, matrix)))]).layers["head"]
            error = layer - encode(layer, CodecSpec()).decode()
            signal, noise = signal + layer.square().sum().item(), noise + error.square().sum().item()
    assert cache.attributes.codec_report["head"].sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)


# Messages


def test_unknown_views_and_tokens(cache, frames):
    assert cache.view("drawn1") == 3
    with pytest.raises(NotCachedError, match=r"does not hold this view .*got flip_x; expected 0: canonical, 1: flip_y"):
        cache.view("flip_x")
    with pytest.raises(NotCachedError, match="got 4; expected 0: canonical"):
        cache.read(frames.tokens[:1], views=[4])
    with pytest.raises(NotCachedError, match="does not hold this token"):
        cache.view_matrices(["nowhere"])


def test_errors_name_the_view(frames, tmp_path):
    teacher = SmallTeacher()
    teacher.prepare = lambda given: fail() if given.points[0, 1] < 0 else torch.zeros(CANVAS.shape)

    def fail() -> None:
        raise DataError("nothing there")

    turned = ViewsConfig(reflections=2)
    first = load_points(frames[0], teacher.points)[0, 1]
    with pytest.raises(DataError) as caught:
        dump(make_config(views=turned), frames, teacher, tmp_path / "one.zarr")
    named = f"token {frames.tokens[0]}, view flip_y" if first > 0 else f"token {frames.tokens[0]}"
    assert f"({named})" in str(caught.value)
    teacher = SmallTeacher()
    whole, calls = teacher.forward, []

    def broken(prepared):
        output = whole(prepared)
        calls.append(1)
        if len(calls) == 3:  # the probe's, the canonical view's, the flip's
            output.heatmap[1] = np.nan
        return output

    teacher.forward = broken
    with pytest.raises(TeacherError, match=rf"no probability \(token {frames.tokens[1]}, view flip_y\)"):
        dump(make_config(views=turned), frames, teacher, tmp_path / "two.zarr")


def test_the_root_document_records_how_views_were_drawn(shared):
    spec = json.loads((shared / "teacher.zarr" / "zarr.json").read_text())["attributes"]["spec"]
    assert spec["views"] == list(NAMES)
    assert spec["drawn"] == {
        "seed": 7,
        "augment": {
            "rotation_deg": [-22.5, 22.5],
            "scale": [0.95, 1.05],
            "translation_std_m": [0.0, 0.0, 0.0],
            "flip_x": True,
            "flip_y": True,
        },
    }
