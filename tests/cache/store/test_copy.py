"""Copies of stores and of some of their layers."""

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
import zarr

from cache.dumping.run import dump
from cache.dumping.verify import verify
from cache.errors import (
    CorruptStoreError,
    MismatchError,
    NotCachedError,
    StoreBusyError,
    StoreError,
    UnsealedError,
)
from cache.nuscenes.frames import Frames
from cache.store import copy as copying
from cache.store.copy import CopyPlan, copy_store
from cache.store.places import target_at
from cache.store.reader import TeacherCache
from cache.store.reencode import reencode
from tests.factories.object_store import ObjectStore
from tests.factories.stores import SmallTeacher, fill, make_config, make_store, make_tokens, open_writer

GOLDEN = Path(__file__).parent.parent.parent / "data"


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize("golden", ["store-v1", "store-v1-views", "store-v2"])
def test_a_copy_of_all_layers_has_the_same_bytes(golden: str, tmp_path: Path) -> None:
    copy_store(GOLDEN / golden, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(GOLDEN / golden)


@pytest.mark.parametrize("golden", ["store-v1-views", "store-v2"])
def test_a_copy_of_some_layers_is_a_store_of_these(golden: str, tmp_path: Path) -> None:
    report = copy_store(GOLDEN / golden, tmp_path / "copy", ["backbone0", "head"])
    assert report.layers == ("head", "backbone0")  # in the store's order
    assert verify(tmp_path / "copy").damage == ()
    found, source = TeacherCache(tmp_path / "copy"), TeacherCache(GOLDEN / golden)
    assert [layer.name for layer in found.spec.layers] == ["head", "backbone0"]
    assert found.spec.fingerprint != source.spec.fingerprint
    assert found.attributes.codec_report == {
        name: source.attributes.codec_report[name] for name in ("head", "backbone0")
    }
    assert found.tokens[:] == source.tokens[:]
    for token in found.tokens:
        ours, theirs = found[token], source[token]
        assert torch.equal(ours.features["backbone0"].values, theirs.features["backbone0"].values)
        assert torch.equal(ours.heatmap, theirs.heatmap)
        assert torch.equal(ours.view_matrix, theirs.view_matrix)
        assert ours.head_maps.keys() == theirs.head_maps.keys()
    group = zarr.open_group(tmp_path / "copy", mode="r")
    assert set(group["features"].array_keys()) == {"head", "head_scale", "backbone0", "backbone0_scale"}
    assert not (tmp_path / "copy" / "features" / "backbone1").exists()


def test_to_an_object_store_and_back_whatever_the_server_does(
    bucket: ObjectStore, sealed_store: Path, tmp_path: Path
) -> None:
    for fault in ("500", "cut", "wrong"):
        bucket.fail("PUT .*/features/head/c", fault)
        bucket.fail("PUT .*/(token|manifest)/", fault)
    progress = []
    copy_store(sealed_store, "s3://bucket/there", ["head"], progress=lambda *done: progress.append(done))
    assert progress == [(1, 3), (2, 3), (3, 3)]
    for fault in ("wrong", "500", "cut"):
        bucket.fail("GET .*/features/head/c", fault)
        bucket.fail("GET .*/(zarr.json|token/c|manifest/)", fault)
    report = copy_store("s3://bucket/there", tmp_path / "back")
    assert verify(tmp_path / "back").damage == ()
    copy_store(sealed_store, tmp_path / "direct", ["head"])
    assert contents(tmp_path / "back") == contents(tmp_path / "direct")
    assert (report.samples, report.shards, report.copied) == (10, 3, 3)
    assert report.bytes == verify(tmp_path / "back").bytes
    assert "10 samples, layers head" in str(report)


def test_a_stopped_copy_goes_on_where_it_stopped(
    sealed_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_shard = CopyPlan.copy_shard

    def fail_at_the_last(plan: CopyPlan, target: object, shard: int) -> int:
        if shard == 2:
            raise KeyboardInterrupt
        return copy_shard(plan, target, shard)

    for target in (str(tmp_path / "copy"), "memory://stopped"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CopyPlan, "copy_shard", fail_at_the_last)
            copy_store(sealed_store, target, ["head"], workers=1)
        if target != "memory://stopped":
            with pytest.raises(UnsealedError):
                TeacherCache(target)
            assert len(TeacherCache(target, allow_partial=True)) == 8
            (tmp_path / "copy/features/head/c.2.0.0.0.0.0.partial").write_bytes(b"left by a killed process")
        report = copy_store(sealed_store, target, ["head"])
        assert (report.copied, report.shards) == (1, 3)
        assert "2 of 3 shards were there already" in str(report)
        assert copy_store(sealed_store, target, ["head"]).copied == 0
    assert verify(tmp_path / "copy").damage == ()
    assert not list(tmp_path.rglob("*.partial"))


def test_damage_of_the_source_is_not_copied(sealed_store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(sealed_store, broken)
    shard = broken / "features/head/c.1.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"do not match their checksum \(.*broken/features/head/c\.1"):
        copy_store(broken, tmp_path / "copy")
    with pytest.raises(UnsealedError):
        TeacherCache(tmp_path / "copy")
    copy_store(broken, tmp_path / "other", ["backbone0"])  # the damage is not among these
    (broken / "teacher_head.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptStoreError, match=r"does not match its checksum \(.*teacher_head"):
        copy_store(broken, tmp_path / "third", ["backbone0"])
    shard.unlink()
    shard.symlink_to(sealed_store / "features/head/c.1.0.0.0.0")
    with pytest.raises(CorruptStoreError, match="a link, a pipe or a device"):
        copy_store(broken, tmp_path / "copy")


def test_refusals(sealed_store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store here \(.*none\)"):
        copy_store(tmp_path / "none", tmp_path / "copy")
    with pytest.raises(NotCachedError, match="got backbone7; expected head or backbone0 or backbone1"):
        copy_store(sealed_store, tmp_path / "copy", ["head", "backbone7"])
    assert not (tmp_path / "copy").exists()
    with open_writer(tmp_path / "unsealed") as writer:
        fill(writer, [0])
    with pytest.raises(UnsealedError, match=r"not complete .*cli copy"):
        copy_store(tmp_path / "unsealed", tmp_path / "copy")
    other = make_store(tmp_path / "other", count=6)
    before = contents(other)
    with pytest.raises(MismatchError, match=r"data\.samples: stored 6, expected 10"):
        copy_store(sealed_store, other)
    assert contents(other) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    with pytest.raises(StoreError, match=r"taken by something else .*got a\.txt"):
        copy_store(sealed_store, tmp_path / "notes")


def hold(path: Path, ready: object, done: object) -> None:
    with target_at(path, range(3)):
        ready.set()
        done.wait(200)


def test_another_writer_of_the_target_is_refused(sealed_store: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "copy", ready, done))
    process.start()
    assert ready.wait(200)
    with pytest.raises(StoreBusyError, match="another process is writing there"):
        copy_store(sealed_store, tmp_path / "copy")
    done.set()
    process.join()


def test_bytes_that_change_on_their_way_are_found(
    sealed_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    require = copying.require_committed
    monkeypatch.setattr(copying, "require_committed", lambda file, **more: checks.append(require(file, **more)))
    copy_store(sealed_store, tmp_path / "copy", ["head"])
    arrays = len(TeacherCache(tmp_path / "copy").shards.arrays)
    assert len(checks) == 2 * 3 * arrays  # where it is read, and where it arrived
    assert make_tokens(10) == TeacherCache(tmp_path / "copy").tokens[:]


def test_frames_are_carried_along(made_frames: Frames, tmp_path: Path) -> None:
    dump(make_config(), made_frames, SmallTeacher(), tmp_path / "store")
    copy_store(tmp_path / "store", "memory://framed", ["head"])
    copy_store("memory://framed", tmp_path / "copy")
    reencode(tmp_path / "store", tmp_path / "derived", ["layers.head.bits=7"])
    frames = contents(tmp_path / "store" / "frames")
    assert "index.json" in frames
    for name in ("copy", "derived"):
        assert contents(tmp_path / name / "frames") == frames
        assert verify(tmp_path / name).damage == ()
    mirror = TeacherCache("memory://framed", local_cache=tmp_path / "cache")
    assert contents(mirror.path / "frames") == frames
    column = tmp_path / "store" / "frames" / "sample_scene.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\7")
    with pytest.raises(CorruptStoreError, match=r"does not match its checksum \(.*sample_scene\.npy"):
        copy_store(tmp_path / "store", tmp_path / "again")
