"""Content that is whole but not its own: every chunk is bound to store, array, shard and row."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.dumping.verify import verify
from cache.errors import CorruptStoreError
from cache.spec import PointPipeline
from cache.store.documents import sign
from cache.store.format import with_checksum
from cache.store.reader import TeacherCache
from tests.factories.stores import make_store, make_tokens

TOKENS = make_tokens(10)
V1 = Path(__file__).parents[2] / "data" / "store-v1"


@pytest.fixture
def store(sealed_store, tmp_path) -> Path:
    return shutil.copytree(sealed_store, tmp_path / "teacher.zarr")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A store of another spec, with the same arrays."""
    return make_store(tmp_path_factory.mktemp("other") / "other.zarr", points=PointPipeline(past_sweeps=4))


def exchange(store: Path, first: str, second: str) -> None:
    one, two = (store / first).read_bytes(), (store / second).read_bytes()
    (store / first).write_bytes(two)
    (store / second).write_bytes(one)


def test_exchanged_shards_of_scales_have_the_same_index_and_are_found(store):
    exchange(store, "features/head_scale/c.0.0.0", "features/head_scale/c.1.0.0")
    with pytest.raises(CorruptStoreError, match="whole, but not the one that was committed") as caught:
        TeacherCache(store)[TOKENS[0]]
    assert f"({store}, features/head_scale, token {TOKENS[0]})" in str(caught.value)
    assert verify(store).damaged_shards == [0, 1]


def test_shards_exchanged_with_their_records_are_found(store):
    for folder in ("heatmap", "canvas_mask", "boxes_vel", "boxes_reg", "features/head", "features/backbone0"):
        tail = next((store / folder).glob("c.0.*")).name[3:]
        exchange(store, f"{folder}/c.0{tail}", f"{folder}/c.1{tail}")
    exchange(store, "manifest/0.json", "manifest/1.json")
    with pytest.raises(
        CorruptStoreError, match=r"of another shard or another store.*'shard': 1.*expected \{'shard': 0"
    ):
        TeacherCache(store)[TOKENS[0]]
    assert verify(store).damaged_shards == [0, 1]


def test_records_of_version_1_are_compared_with_their_number(tmp_path):
    store = shutil.copytree(V1, tmp_path / "teacher.zarr")
    exchange(store, "manifest/0.json", "manifest/1.json")
    with pytest.raises(CorruptStoreError, match="of another shard"):
        TeacherCache(store)[TOKENS[0]]


def test_a_foreign_shard_with_its_record_is_found(store, other):
    for file in other.rglob("*"):
        if file.name.startswith("c.1.") or file.match("manifest/1.json"):
            shutil.copy(file, store / file.relative_to(other))
    with pytest.raises(CorruptStoreError, match="of another shard or another store"):
        TeacherCache(store)[TOKENS[4]]
    assert TeacherCache(store)[TOKENS[0]].token == TOKENS[0]
    assert verify(store).damaged_shards == [1]


def test_a_store_replaced_under_an_open_reader_is_found(store, other):
    cache = TeacherCache(store)
    cache.read(TOKENS[:1])
    shutil.copytree(other, store, dirs_exist_ok=True)
    (store / "heatmap/c.0.0.0.0.0").write_bytes((other / "heatmap/c.1.0.0.0.0").read_bytes())
    with pytest.raises(CorruptStoreError):
        cache.read(TOKENS[:1])
    with pytest.raises(CorruptStoreError, match="of another shard or another store"):
        cache.read(TOKENS[4:5])
    assert tuple(cache.tokens) == TOKENS


@pytest.mark.parametrize(("name", "change"), [("view_matrix", 2), ("token", 1), ("token_order", 1)])
def test_a_small_array_with_another_checksum_is_not_the_stores(store, name, change):
    (file,) = (store / name).glob("c.*")
    body = file.read_bytes()[:-4]
    values = (np.frombuffer(body, "<f4") * 2).tobytes() if name == "view_matrix" else body[change:] + body[:change]
    file.write_bytes(with_checksum(values))
    with pytest.raises(CorruptStoreError, match="whole, but not this store's"):
        TeacherCache(store)
    assert len(verify(store).damage) == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("token", "the tokens are not those of the store's spec"),
        ("token_order", "the order of the tokens does not sort them"),
        ("view_matrix", "a view's matrix is not the one of its name"),
    ],
)
def test_small_arrays_of_version_1_are_checked_by_verify(tmp_path, name, what):
    store = shutil.copytree(V1, tmp_path / "teacher.zarr")
    (file,) = (store / name).glob("c.*")
    body = file.read_bytes()[:-4]
    rows = np.frombuffer(body, "<f4") * 2 if name == "view_matrix" else np.frombuffer(body, np.uint8).reshape(5, -1)
    file.write_bytes(with_checksum(np.roll(rows, 1, axis=0).tobytes() if rows.ndim == 2 else rows.tobytes()))
    assert [damage.error.what for damage in verify(store).damage] == [what]


def test_version_1_is_said_to_be_checked_less():
    assert "format version 1: its shards are not bound to the store" in str(verify(V1))


def edited(store: Path, key: str, edit) -> None:
    document = json.loads((store / key).read_text())
    document.get("attributes", document).pop("sha256")
    edit(document)
    (store / key).write_bytes(sign(document))


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda r: r["files"].pop("heatmap"), "a record does not describe all of its shard"),
        (
            lambda r: r["files"]["heatmap"].update(chunks_crc32c="00000000"),
            "a record does not describe all of its shard",
        ),
        (lambda r: r["files"]["heatmap"].update(bytes=10**30), "a record of the store is broken"),
        (lambda r: r["files"]["heatmap"].update(bytes=-1), "a record of the store is broken"),
        (lambda r: r["distortion"]["head"].update(noise=float("inf")), "a document of the store is broken"),
        (lambda r: r.pop("fingerprint"), "a record is of another shard or another store"),
    ],
)
def test_broken_records_are_listed(store, edit, what):
    edited(store, "manifest/1.json", edit)
    report = verify(store)
    assert [damage.error.what for damage in report.damage] == [what]
    assert report.damaged_shards == [1]


def test_a_fingerprint_that_is_not_the_specs(store):
    edited(store, "zarr.json", lambda root: root["attributes"].update(fingerprint="f" * 64))
    with pytest.raises(CorruptStoreError, match="the store's fingerprint is not that of its spec"):
        TeacherCache(store)
