import itertools
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.crash import contents, flip, flip_bits
from cache.dumping.run import dump
from cache.dumping.verify import repair, verify
from cache.errors import CorruptStoreError, MismatchError, StoreError
from cache.store.folder import StoreFolder
from tests.factories.stores import SmallFrames, SmallTeacher, fill, make_config, open_writer


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return SmallFrames(root=tmp_path_factory.mktemp("points") / "points")


@pytest.fixture(scope="module")
def dumped(frames, tmp_path_factory) -> Path:
    """A finished dump, not to be written to."""
    path = tmp_path_factory.mktemp("dumped") / "teacher.zarr"
    dump(make_config(), frames, SmallTeacher(), path)
    return path


@pytest.fixture
def store(dumped, tmp_path) -> Path:
    return shutil.copytree(dumped, tmp_path / "teacher.zarr")


@pytest.mark.parametrize("full", [True, False])
def test_a_sound_store(dumped, full):
    reports: list[tuple[int, int]] = []
    report = verify(dumped, full=full, progress=lambda done, total: reports.append((done, total)))
    assert report.damage == ()
    assert (report.samples, report.sealed, reports) == (10, True, [(1, 3), (2, 3), (3, 3)])
    assert report.bytes == sum(file.stat().st_size for file in dumped.rglob("c.*") if file.parent.name not in SMALL)
    assert "no fault in 10 samples" in str(report)
    assert ("every byte" in str(report)) == full


SMALL = ("token", "token_order", "view_matrix")


def test_the_committed_part_of_an_unfinished_store_is_checked(tmp_path):
    with open_writer(tmp_path / "teacher.zarr") as writer:
        fill(writer, [1])
    report = verify(tmp_path / "teacher.zarr")
    assert (report.samples, report.sealed, report.damage) == (4, False, ())
    assert "not complete yet" in str(report)


def test_no_store(tmp_path):
    with pytest.raises(StoreError):
        verify(tmp_path)


def test_damage_names_store_array_and_token(store, frames):
    flip(store / "features" / "head" / "c.1.0.0.0.0", 100)
    report = verify(store)
    assert f"({store}, features/head, token {frames.tokens[4]})" in str(report)
    assert report.damaged_shards == [1]
    assert verify(store, full=False).damage == ()


@pytest.mark.parametrize(
    "key", ["features/head/zarr.json", "features/zarr.json", "token/zarr.json", "teacher_head.safetensors"]
)
def test_damaged_small_files_are_found_by_a_quick_look(store, key):
    (store / key).unlink()
    report = verify(store, full=False)
    assert len(report.damage) == 1
    assert key in str(report)
    assert report.damaged_shards == []


def test_a_shard_with_bytes_too_many(store):
    with (store / "heatmap" / "c.0.0.0.0.0").open("ab") as file:
        file.write(b"x")
    assert "a shard has another size" in str(verify(store, full=False))


def test_random_bit_flips_in_every_kind_of_file(store):
    """60 single bits, spread over all kinds of files: each is detected, or what is read stays the same."""
    flips = flip_bits(store, 60)
    assert len(flips.kinds) > 15
    assert flips.unnoticed == []
    assert all(kind.endswith(".json") for kind in flips.harmless), flips.harmless
    assert flips.detected.total() >= 55


def test_repair_writes_only_what_is_damaged(store, dumped, frames):
    flip(store / "features" / "head" / "c.1.0.0.0.0", 100)
    (store / "heatmap" / "c.2.0.0.0.0").unlink()
    (store / "features" / "head" / "zarr.json").write_text("{}")
    (store / "token_order" / "c.0").unlink()
    flip(store / "manifest" / "2.json", 1000)
    untouched = (store / "heatmap" / "c.0.0.0.0.0").stat().st_mtime_ns
    seen: list[int] = []
    report = repair(store, make_config(), frames, SmallTeacher(), progress=lambda p: seen.append(p.total))
    assert report.damage == ()
    assert set(seen) == {6}  # shards 1 and 2
    assert contents(store) == contents(dumped)
    assert (store / "heatmap" / "c.0.0.0.0.0").stat().st_mtime_ns == untouched


def test_repair_of_a_lost_record(store, dumped, frames):
    (store / "manifest" / "0.json").unlink()
    assert verify(store).damaged_shards == [0]
    assert repair(store, make_config(), frames, SmallTeacher()).damage == ()
    assert contents(store) == contents(dumped)


def test_repair_needs_the_same_teacher(store, frames):
    before = contents(store)
    with pytest.raises(MismatchError, match="weights_sha256"):
        repair(store, make_config(), frames, SmallTeacher(seed=1))
    assert contents(store) == before


def test_a_store_without_its_root_cannot_be_repaired(store, frames):
    os.truncate(store / "zarr.json", 100)
    with pytest.raises(CorruptStoreError, match=r"zarr\.json"):
        repair(store, make_config(), frames, SmallTeacher())


def folder_for(path: Path) -> None:
    path.unlink()
    path.mkdir()


def file_for(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (shutil.rmtree, "features/head"),
        (shutil.rmtree, "token"),
        (shutil.rmtree, "manifest"),
        (folder_for, "heatmap/c.1.0.0.0.0"),
        (folder_for, "manifest/1.json"),
        (folder_for, "token/c.0.0"),
        (file_for, "canvas_mask"),
        (file_for, "view_matrix"),
    ],
)
def test_repair_of_missing_folders_and_of_what_took_a_place(store, dumped, frames, damage, key):
    damage(store / key)
    assert verify(store).damage
    assert repair(store, make_config(), frames, SmallTeacher()).damage == ()
    whole = contents(dumped)
    assert {key: data for key, data in contents(store).items() if key in whole} == whole


def test_a_repair_killed_at_any_moment_never_seals_the_damage(store, dumped, frames, monkeypatch):
    """Of two damaged shards: whatever step it is killed at, a dump refuses or mends both."""
    for shard in (0, 1):
        flip(store / "heatmap" / f"c.{shard}.0.0.0.0", 100)
    damaged = contents(store)
    refused, mended = 0, 0
    for step in range(100):
        shutil.rmtree(store)
        restore(store, damaged)
        steps = itertools.count()

        def die(*_: object, steps=steps, step=step, **__: object) -> None:
            if next(steps) == step:
                raise KilledError

        with monkeypatch.context() as patch:
            for name in ("write_durably", "unlink", "rename"):
                before = getattr(StoreFolder, name)
                patch.setattr(StoreFolder, name, lambda *a, before=before, die=die, **k: (die(), before(*a, **k))[1])
            try:
                repair(store, make_config(), frames, SmallTeacher())
            except KilledError:
                pass
            else:
                break
        try:
            dump(make_config(), frames, SmallTeacher(), store)
            if contents(store) != damaged:  # otherwise the repair had withdrawn nothing, and the store says complete
                mended += 1
                assert contents(store) == contents(dumped)
        except CorruptStoreError as error:
            refused += 1
            assert "--repair" in str(error)
    assert step > 10
    assert refused
    assert mended


class KilledError(Exception):
    """Stands for SIGKILL: nothing after it is done."""


def restore(path: Path, files: dict[str, bytes]) -> None:
    for key, data in files.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)


def test_many_faults_are_counted_and_some_are_shown(store, monkeypatch):
    monkeypatch.setattr("cache.dumping.verify.MOST_FAULTS", 2)
    monkeypatch.setattr("cache.dumping.verify.SHOWN_FAULTS", 1)
    for shard in range(3):
        (store / "manifest" / f"{shard}.json").unlink()
    report = verify(store)
    assert (len(report.damage), report.checked_all) == (2, False)
    assert "2 faults" in str(report)
    assert "and 1 more\nthe rest was not checked" in str(report)
