"""Stores that keep the depth: what the cameras see of the key sweep, without a LiDAR file."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from rich.console import Console

from benchmarks.crash import contents
from cache.dumping.estimate import plan
from cache.dumping.run import dump
from cache.dumping.verify import repair, verify
from cache.errors import DataError, MismatchError, NotCachedError
from cache.geometry.views import ViewsConfig
from cache.nuscenes.frames import CAMERAS, Frames
from cache.nuscenes.points import _read_sweep, camera_points
from cache.store.partition import Part
from cache.store.reader import TeacherCache
from cache.visualization.summary import store_tables
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset
from student.data.samplers import SampleDraw
from student.data.teacher_source import TeacherSource
from student.training.preflight import require_depth_cameras
from tests.factories.stores import SmallTeacher, make_config


def config(**changes: object):
    return make_config(depth=True, samples_per_shard=1, views=ViewsConfig(reflections=2), **changes)


@pytest.fixture(scope="module")
def dumped(made_frames: Frames, tmp_path_factory) -> Path:
    """A store of two views with depth, not to be written to."""
    path = tmp_path_factory.mktemp("depth") / "teacher.zarr"
    dump(config(), made_frames, SmallTeacher(), path)
    return path


def test_the_points_are_those_of_the_lidar_to_a_step(dumped, made_frames):
    cache = TeacherCache(dumped)
    spec = cache.spec.depth
    assert (spec.cameras, spec.pixel_step, spec.room) == (CAMERAS, 1 / 256, 16384)
    for frame in made_frames:
        lists = cache.camera_points(frame.token, nearest_m=1.0)
        for stored, live in zip(lists, camera_points(frame, nearest_m=1.0), strict=True):
            ordered = live[np.argsort(np.round(live[:, 2] / 0.005), kind="stable")]
            assert len(stored) == len(live) > 100
            assert (np.abs(stored - ordered) <= np.array([1 / 512, 1 / 512, 0.0025]) + 1e-9).all()


def test_plain_zarr_reads_them_once_for_all_views(dumped, made_frames):
    array = zarr.open_group(dumped, mode="r")["depth_points"]
    assert array.shape == (2, 6, 3, 16384)
    assert (array.chunks, array.shards) == ((1, 6, 3, 16384), (1, 6, 3, 16384))
    assert array.metadata.dimension_names == ("sample", "camera", "u_v_depth", "point")
    for row, token in enumerate(made_frames.tokens):
        codes = array[row].astype(float)
        for camera, stored in enumerate(TeacherCache(dumped).camera_points(token)):
            u, v, depth = codes[camera, :, codes[camera, 2] > 0].T
            np.testing.assert_allclose(stored[:, 0], (u + 0.5) / 256 - 0.5)
            np.testing.assert_allclose(stored[:, 1], (v + 0.5) / 256 - 0.5)
            np.testing.assert_allclose(stored[:, 2], depth * 0.005)


@pytest.mark.parametrize("stride", [8, 16])
def test_a_student_learns_the_same_depth(dumped, made_frames, monkeypatch, stride):
    """By the images' augmentation as it is drawn; the rare patch that differs lost a point to its neighbour."""
    student = StudentConfig.model_validate({"image": {"size": (128, 256)}, "detector": {"image_stride": stride}})
    draws = [SampleDraw(index=index, seed=(seed,)) for index in (0, 1) for seed in range(4)]
    source = TeacherSource(cache=TeacherCache(dumped), layers=())
    live = StudentDataset(made_frames, student, with_depth=True)
    cached = StudentDataset(made_frames, student, with_depth=True, sources=(source,))
    expected = torch.cat([live[draw].require_depth_m() for draw in draws])
    monkeypatch.setattr("cache.nuscenes.points.load_points", None)  # no LiDAR file is read any more
    found = torch.cat([cached[draw].require_depth_m() for draw in draws])
    known = expected > 0
    assert known.float().mean() > 0.3
    same = (found - expected).abs() <= 0.0026
    assert 1 - same[known].float().mean() < 2e-3
    assert (found > 0).ne(known).float().mean() < 1e-3


def test_other_cameras_are_refused(dumped, sealed_store):
    with pytest.raises(MismatchError, match=r"depth: stored None, expected \{'cameras'"):
        require_depth_cameras(TeacherCache(sealed_store), CAMERAS)
    with pytest.raises(MismatchError, match=r"depth.cameras\[0\]: stored 'CAM_FRONT_LEFT', expected 'CAM_FRONT'"):
        require_depth_cameras(TeacherCache(dumped), ("CAM_FRONT", *CAMERAS[1:]))


def test_parts_and_workers_write_the_same_bytes(dumped, made_frames, tmp_path):
    for index in (1, 0):
        path, part = tmp_path / "parts.zarr", Part(index=index, count=2)
        dump(config(workers=2), made_frames, SmallTeacher(), path, part=part)
    assert contents(tmp_path / "parts.zarr") == contents(dumped)


def test_a_frames_sweeps_are_read_once_for_all_views_and_the_depth(dumped, made_frames, tmp_path, monkeypatch):
    reads: Counter[Path] = Counter()

    def counting(path):
        reads[path] += 1
        return _read_sweep(path)

    monkeypatch.setattr("cache.nuscenes.points._read_sweep", counting)
    dump(config(), made_frames, SmallTeacher(), tmp_path / "teacher.zarr")
    first, second = ([sweep.path for sweep in frame.sweeps[:2]] for frame in made_frames)
    assert [reads.pop(path) for path in first] == [3, 2], "the spec takes the first frame's points and those in cameras"
    assert [reads.pop(path) for path in second] == [1, 1]
    assert not reads
    assert contents(tmp_path / "teacher.zarr") == contents(dumped)


def test_damage_is_found_and_repaired(dumped, made_frames, tmp_path):
    store = shutil.copytree(dumped, tmp_path / "teacher.zarr")
    assert verify(store).damage == ()
    file = store / "depth_points" / "c.1.0.0.0"
    data = bytearray(file.read_bytes())
    data[500] ^= 4
    file.write_bytes(data)
    report = verify(store)
    assert f"depth_points, token {made_frames.tokens[1]}" in str(report)
    assert report.damaged_shards == [1]
    assert repair(store, config(), made_frames, SmallTeacher()).damage == ()
    assert contents(store) == contents(dumped)


def test_plan_and_tables_count_them(dumped, made_frames, tmp_path):
    planned = plan(config(), made_frames, SmallTeacher(), tmp_path / "nowhere.zarr")
    (array,) = [array for array in planned.arrays if array.name == "depth_points"]
    index_and_checksum = 2 * (4 + 16)
    assert array.bytes * 2 + index_and_checksum - 32 == sum(f.stat().st_size for f in dumped.glob("depth_points/c.*"))
    assert sum(view.bytes for view in planned.views) + array.bytes == pytest.approx(planned.bytes_per_sample)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in store_tables(TeacherCache(dumped)):
        console.print(table)
    text = console.export_text()
    assert "of 6 cameras, to 1/256 pixel and 5 mm" in text
    assert "depth_points" in text


def test_it_is_part_of_the_identity(dumped, made_frames):
    without = make_config(samples_per_shard=1, views=ViewsConfig(reflections=2))
    with pytest.raises(MismatchError, match=r"depth: stored \{'cameras': .*expected None"):
        dump(without, made_frames, SmallTeacher(), dumped)


def test_a_store_without_depth_raises(sealed_store):
    cache = TeacherCache(sealed_store)
    with pytest.raises(NotCachedError, match=r"keeps no depth .*\. Dump it with `depth: true`"):
        cache.camera_points(cache.tokens[0])
    with pytest.raises(NotCachedError, match="does not hold this token"):
        TeacherCache(sealed_store)["nowhere"]


def test_an_image_with_too_many_points_names_camera_and_token(made_frames, tmp_path, monkeypatch):
    monkeypatch.setattr("cache.geometry.camera_points.MIN_POINTS", 1)
    real = camera_points

    def crowded(frame, key_sweep=None):
        points = real(frame, key_sweep=key_sweep)
        return points if frame.token == made_frames.tokens[0] else [np.repeat(each, 9, axis=0) for each in points]

    monkeypatch.setattr("cache.dumping.prepared.camera_points", crowded)
    with pytest.raises(DataError, match=rf"\(CAM_\w+, token {made_frames.tokens[1]}\); got \d+ points"):
        dump(config(), made_frames, SmallTeacher(), tmp_path / "teacher.zarr")
