import json
from pathlib import Path

import pytest

from cache.errors import CorruptStoreError, MismatchError, StoreError
from cache.store.documents import parse_attributes, read_attributes, read_signed, sign


@pytest.mark.parametrize("document", [{"a": 1}, {"attributes": {"a": 1}, "b": [1.5, None]}])
def test_signed_documents_there_and_back(document):
    assert read_signed(sign(document), "here") == document


def test_every_bit_of_a_signed_document_counts():
    document = {"attributes": {"sealed": True, "layers": ["head"], "sqnr_db": 38.7}, "node_type": "group"}
    data = sign(document)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert read_signed(bytes(damaged), "here") == document  # white space: harmless
        except CorruptStoreError as error:
            assert "(here)" in str(error)


def test_another_format_version_is_refused():
    root = sign({"attributes": {"format_version": 3}})
    with pytest.raises(MismatchError) as caught:
        parse_attributes(root, "store/zarr.json")
    assert "another format version (store/zarr.json); got 3; expected 1 or 2" in str(caught.value)


def test_attributes_of_a_later_version_are_not_guessed_at(sealed_store):
    document = read_signed((sealed_store / "zarr.json").read_bytes(), "here")
    document["attributes"]["spec"]["views"] = ["canonical", "flipped"]
    with pytest.raises(MismatchError) as caught:
        parse_attributes(sign(document), "store/zarr.json")
    assert "does not understand (store/zarr.json); got" in str(caught.value)
    assert "spec.views.1" in str(caught.value)


def test_a_group_of_another_writer():
    with pytest.raises(CorruptStoreError):
        parse_attributes(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode(), "store/zarr.json"
        )


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "teacher.zarr.zip").write_bytes(b"PK")
    with pytest.raises(StoreError, match=r"there is no store here .*Unpack the archive with `unzip .*zip -d FOLDER`"):
        read_attributes(tmp_path / "teacher.zarr.zip")
