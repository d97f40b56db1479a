import json
import warnings

import numpy as np
import pytest
import zarr

from cache.errors import CorruptStoreError, MismatchError
from cache.store.documents import parse_attributes, read_signed, sign
from cache.store.format import (
    checked,
    pack_chunk,
    pack_index,
    unpack_chunk,
    unpack_index,
    with_checksum,
)
from cache.store.layout import sample_arrays
from cache.store.reader import TeacherCache
from tests.factories.stores import make_sample, make_spec, make_store, make_tokens


def test_names_and_shapes_of_arrays():
    arrays = sample_arrays(make_spec(make_tokens(10)))
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "features/head": ("uint8", (6, 6, 8)),
        "features/head_scale": ("float32", (6,)),
        "features/backbone0": ("int8", (4, 12, 16)),
        "features/backbone0_scale": ("float32", (4,)),
        "features/backbone1": ("float16", (3, 6, 8)),
        "heatmap": ("uint8", (3, 6, 8)),
        "canvas_mask": ("uint8", (12, 2)),
        "boxes_reg": ("float16", (2, 2, 6, 8)),
        "boxes_vel": ("float16", (2, 2, 6, 8)),
    }
    assert arrays["features/head"].key(3) == "features/head/c.3.0.0.0.0"
    assert arrays["features/head_scale"].key(0) == "features/head_scale/c.0.0.0"


def test_plain_zarr_reads_what_was_written(sealed_store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(sealed_store, mode="r")
        names = sorted(name for name, _ in group.members(max_depth=2))
    assert names == sorted([*sample_arrays(make_spec(make_tokens(10))), "features", *WHOLE_ARRAYS])
    for position in range(10):
        expected = make_sample(make_spec(make_tokens(10)), position).arrays
        for name, values in expected.items():
            np.testing.assert_array_equal(group[name][position], values, err_msg=name)


WHOLE_ARRAYS = ("token", "token_order", "view_matrix")


def test_small_arrays_read_by_zarr(sealed_store):
    group = zarr.open_group(sealed_store, mode="r")
    token = group["token"][:]
    assert tuple(name.decode() for name in token.view(f"S{token.shape[1]}").ravel().tolist()) == make_tokens(10)
    ordered = [make_tokens(10)[position] for position in group["token_order"][:]]
    assert ordered == sorted(make_tokens(10))
    np.testing.assert_array_equal(group["view_matrix"][:], np.eye(4, dtype=np.float32)[None])


def test_arrays_open_one_by_one(sealed_store):
    array = zarr.open_array(sealed_store / "features" / "head", mode="r")
    assert array.metadata.dimension_names == ("sample", "view", "head_channel", "head_y", "head_x")
    assert array.chunks == (1, 1, 6, 6, 8)
    assert array.shards == (4, 1, 6, 6, 8)


def test_zarr_sees_the_checksum_of_data(tmp_path):
    store = make_store(tmp_path / "teacher.zarr")
    path = store / "heatmap" / "c.0.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store, mode="r")["heatmap"][0]


def test_attributes_say_what_a_person_asks_first(sealed_store):
    attributes = zarr.open_group(sealed_store, mode="r").attrs
    assert attributes["format_version"] == 1
    assert attributes["sealed"] is True
    assert attributes["classes"] == ["car", "pedestrian", "traffic_cone"]
    assert attributes["software"]["torch"] == "2.0"
    assert attributes["codec_report"]["head"]["sqnr_db"] > 30
    assert attributes["spec"]["teacher"]["name"] == "small"


def test_xarray_opens_it(sealed_store):
    xarray = pytest.importorskip("xarray", reason="xarray is not a dependency")
    features = xarray.open_zarr(sealed_store, group="features")
    assert dict(features["head"].sizes) == {"sample": 10, "view": 1, "head_channel": 6, "head_y": 6, "head_x": 8}
    decoded = features["head"][3, 0] * features["head_scale"][3, 0]
    cache = TeacherCache(sealed_store)
    np.testing.assert_allclose(decoded.values, cache[cache.tokens[3]].features["head"].decode()[0], rtol=1e-6)


def test_chunk_there_and_back():
    values = np.random.default_rng(0).integers(0, 9, (3, 5, 7)).astype(np.uint8)
    out = np.empty_like(values)
    unpack_chunk(np.frombuffer(pack_chunk(values, 1), np.uint8), out, "here")
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("damage", [b"", b"abc", b"abcd"])
def test_bytes_too_few_for_a_checksum(damage):
    with pytest.raises(CorruptStoreError, match="checksum"):
        checked(np.frombuffer(damage, np.uint8), "here")


def test_crc32c_of_the_standard_check_value():
    assert with_checksum(b"123456789")[-4:] == (0xE3069283).to_bytes(4, "little")


def test_index_by_hand():
    index = unpack_index(np.frombuffer(pack_index([5, 7], chunks=3), np.uint8), "here")
    assert index.tolist() == [[0, 5], [5, 7], [-1, -1]]


def test_a_chunk_that_is_no_zstd_frame():
    stored = np.frombuffer(with_checksum(b"not a frame"), np.uint8)
    with pytest.raises(CorruptStoreError, match="cannot be decompressed"):
        unpack_chunk(stored, np.empty(4, np.uint8), "here")


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
    root = sign({"attributes": {"format_version": 2}})
    with pytest.raises(MismatchError) as caught:
        parse_attributes(root, "store/zarr.json")
    assert "another format version (store/zarr.json); got 2; expected 1" in str(caught.value)


def test_attributes_of_a_later_version_are_not_guessed_at(sealed_store):
    document = read_signed((sealed_store / "zarr.json").read_bytes(), "here")
    document["attributes"]["spec"]["views"] = ["canonical", "flipped"]
    with pytest.raises(MismatchError) as caught:
        parse_attributes(sign(document), "store/zarr.json")
    assert "does not understand (store/zarr.json); got" in str(caught.value)
    assert "spec.views.1" in str(caught.value)


def test_a_group_that_is_not_ours():
    with pytest.raises(CorruptStoreError):
        parse_attributes(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode(), "store/zarr.json"
        )
