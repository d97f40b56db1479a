import warnings

import numpy as np
import pytest
import zarr

from cache.store.documents import node_files, read_document
from cache.store.layout import sample_arrays
from cache.store.reader import TeacherCache
from tests.factories.stores import make_sample, make_spec, make_store, make_tokens


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


def test_zarr_verifies_the_checksum_of_data(tmp_path):
    store = make_store(tmp_path / "teacher.zarr")
    path = store / "heatmap" / "c.0.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store, mode="r")["heatmap"][0]


def test_attributes_of_the_group(sealed_store):
    attributes = zarr.open_group(sealed_store, mode="r").attrs
    assert attributes["format_version"] == 2
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


def test_each_array_has_the_metadata_of_the_root(sealed_store):
    nodes = node_files(read_document(sealed_store, "zarr.json"), make_spec(make_tokens(10)))
    assert len(nodes) == 13  # 12 arrays and the group of features
    for path, data in nodes.items():
        assert (sealed_store / path).read_bytes() == data
    consolidated, single = (
        zarr.open_group(sealed_store, mode="r", use_consolidated=use)["features/head"].metadata for use in (True, False)
    )
    assert consolidated == single
