"""Stores of all format versions stay readable for ever: those of tests/data were written once, and are never rewritten.

store-v1 has one view; store-v1-views and store-v2 have a reflection, a drawn view and the depth in two cameras.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from cache.dumping.verify import verify
from cache.geometry.camera_points import DepthSpec
from cache.geometry.views import DrawnViews, view_matrices
from cache.store.documents import TeacherFile, read_record
from cache.store.reader import TeacherCache
from cache.store.writer import StoreWriter
from tests.factories.stores import fill

GOLDEN = Path(__file__).parents[2] / "data" / "store-v1"
TOKENS = ("0000", "0007f", "000eff", "0015", "001cf")

VIEWS = GOLDEN.with_name("store-v1-views")
VIEW_NAMES = ("canonical", "flip_y", "drawn0")

VERSION_2 = GOLDEN.with_name("store-v2")

SQNR_HEAD = 51.306149
VALUES = {
    "head": "1e2c64614c4d79e333435b54b2669e639345398b15fecff9d9aa39a6e32f373b",
    "backbone0": "3cef00f4e3e63cecc482b045b0d5f3a0313bfbef15db321a6c275200be68d220",
    "backbone1": "8ac07e622f47ac22935dd53952dcf260f7e26e59a825b90bbd718ddfd5be9bd0",
    "backbone2": "803018dfbdee84613609d6c8215874e65358880fffe2ebd184811ba8129ae456",
    "reg": "6a31dce7dbf73fa1919f67755bbaceeebc5dba9ffaf795393b9504924ee62309",
    "vel": "31d7defe9f17951b64dd720940ca19db0bc472eddff06910efc97cd739f7734a",
    "heatmap": "e5d9c0db68018caf1d14e97d612a19c7ca22305a95ed523784ff0c32a16bc0f6",
    "canvas_mask": "b0965c5a219936ba3dfe2f3f4b07d2b3616ca3d282fa8c19bee8201686de8ea6",
}
DECODED = {
    "head": [0.0, 0.0, 0.0],
    "backbone0": [0.29646891355514526, 0.18244241178035736, 0.06841590255498886],
    "backbone1": [1.66015625, 0.18701171875, -0.0259857177734375],
    "backbone2": [0.8428471684455872, 0.41996532678604126, 1.5427894592285156],
}


@pytest.fixture(scope="module")
def cache() -> TeacherCache:
    return TeacherCache(GOLDEN)


def sha256(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(tensor.numpy()).tobytes() for tensor in tensors)).hexdigest()


def test_its_attributes(cache):
    assert tuple(cache.tokens) == TOKENS
    assert [(layer.name, layer.channels, layer.codec.kind, layer.codec.bits) for layer in cache.spec.layers] == [
        ("head", 6, "unsigned", 8),
        ("backbone0", 4, "signed", 8),
        ("backbone1", 3, "float16", 8),
        ("backbone2", 2, "unsigned", 5),
    ]
    assert cache.spec.layers[3].codec.companding == 0.5
    assert cache.spec.teacher.classes == ("car", "pedestrian", "traffic_cone")
    assert cache.spec.canvas_grid.shape == (12, 16)
    assert cache.spec.fingerprint == cache.attributes.fingerprint
    assert cache.attributes.codec_report["head"].sqnr_db == pytest.approx(SQNR_HEAD)


def test_every_value(cache):
    batch = cache.read(TOKENS, head_maps=True)
    found = {name: sha256(layer.values, layer.scale) for name, layer in batch.features.items()}
    found |= {name: sha256(maps) for name, maps in batch.head_maps.items()}
    found |= {"heatmap": sha256(batch.heatmap), "canvas_mask": sha256(batch.canvas_mask)}
    assert found == VALUES


def test_decoded_features(cache):
    decoded = {name: layer.decode()[0, 0, 0, :3].tolist() for name, layer in cache[TOKENS[2]].features.items()}
    for name, expected in DECODED.items():
        assert decoded[name] == pytest.approx(expected, rel=1e-6)


def test_head_weights(cache):
    assert torch.equal(cache.head_weights()["heatmap.weight"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("store", [GOLDEN, VIEWS, VERSION_2])
def test_it_is_sound(store):
    assert verify(store).damage == ()


def test_plain_zarr_reads_it(cache):
    group = zarr.open_group(GOLDEN, mode="r")
    for row, token in enumerate(TOKENS):
        np.testing.assert_array_equal(group["features/backbone0"][row], cache[token].features["backbone0"].values)
        np.testing.assert_array_equal(group["boxes_vel"][row], cache[token].head_maps["vel"])


# Of several views


VALUES_OF_VIEWS = {
    "view_matrix": "74b0dc2446035bb147b280ef3a516346bd128a672f596d4190f6480d49437597",
    "head": "5395ca46f464b15cb5f60ec55dd14b70f59db42370872d780feea7883edbce9c",
    "heatmap": "305957b840d48f302bf6404ac4ba7255c91ae86977f721e1a53a46484c5b199c",
    "canvas_mask": "c323db16d32fbcf41da275c519bbc1cb200db665b202dc5175964baaa2949a66",
}


@pytest.fixture(scope="module")
def views() -> TeacherCache:
    return TeacherCache(VIEWS)


def test_the_attributes_of_a_store_of_views(views):
    assert views.spec.views == VIEW_NAMES
    assert views.spec.drawn == DrawnViews(seed=9)
    assert views.spec.depth == DepthSpec(cameras=("left", "right"), room=8, pixel_step=1 / 32)
    assert views.spec.fingerprint == views.attributes.fingerprint


def test_every_value_of_every_view(views):
    samples = [views[token] for token in TOKENS[:3]]
    found = {
        "view_matrix": sha256(*(sample.view_matrix for sample in samples)),
        "head": sha256(*(sample.features["head"].values for sample in samples)),
        "heatmap": sha256(*(sample.heatmap for sample in samples)),
        "canvas_mask": sha256(*(sample.canvas_mask for sample in samples)),
    }
    assert found == VALUES_OF_VIEWS


def test_the_matrices_are_drawn_today_as_they_were(views):
    for token in TOKENS[:3]:
        expected = view_matrices(VIEW_NAMES, DrawnViews(seed=9), token)
        np.testing.assert_array_equal(views.view_matrices([token])[0], expected)
    np.testing.assert_allclose(views.view_matrices(TOKENS[1:2])[0, 2, 0, :2], [0.95675117, 0.35774204], rtol=1e-6)


def test_the_points_in_its_cameras(views):
    left, right = views.camera_points(TOKENS[2])
    assert (len(left), len(right)) == (8, 8)
    assert right[0] == pytest.approx([1616.578125, 3.015625, 129.865])


# Of format version 2


VALUES_OF_VERSION_2 = {
    "head": "f99ee435a26a31cb6626facabb25060ba81c939a2b853a3ce00950d5ffbafa51",
    "backbone0": "338e3ece20bd991ec25429f6b151c1d2c38496d2e0a65eb36a4bcd909e31b336",
    "backbone1": "91fdd18d8956823dd7f2fb2484506fb415586eccef4c00b85f1c014ede1967de",
    "backbone2": "f0356094e9adc1e301c4db5d96ace46cd3a95b870f5c621500258996c1643353",
    "reg": "98a293e59d62bd7ab4a35d76a633f899878a2cb8d4f3ebec5b2113a8bc48b606",
    "vel": "51635ef038e565bb1d4f33e2d2baafc620b6f4dd42e21cd4521a7b4346a0a2dc",
    "heatmap": "cd5ad6dfdcfd7268e23c99b5ab04016f2765cb0dde801e90f44d806cd8e21aaf",
    "canvas_mask": "69badcbbffb0ac76310cea62486ad8541d4d60b5642ab16dc267247db9c9ea67",
    "view_matrix": "fb88e22b92a655b99f6f141a4c2074d26ad905322c2bf82b3de65797dfaa4e81",
}


@pytest.fixture(scope="module")
def second() -> TeacherCache:
    return TeacherCache(VERSION_2)


def test_the_attributes_of_version_2(second):
    attributes = second.attributes
    assert (attributes.format_version, TeacherCache(GOLDEN).attributes.format_version) == (2, 1)
    assert attributes.fingerprint == "9174abb406fa14d070cd5673eaccffb3ee83a327117dbd4c0760be8bd51d5816"
    assert tuple(second.tokens) == TOKENS
    assert attributes.teacher_file == TeacherFile(name="teacher.pth", sha256="c" * 64)
    assert {name: file.size for name, file in attributes.small_arrays.items()} == {
        "token": 5 * 6 + 4,
        "token_order": 5 * 8 + 4,
        "view_matrix": 5 * 3 * 64 + 4,
    }
    record = read_record(VERSION_2, 2, attributes)
    assert (record.fingerprint, record.shard) == (attributes.fingerprint, 2)
    assert len(record.files["features/head"].checksums) == 3  # one sample of three views


def test_every_value_of_version_2(second):
    samples = [second[token] for token in TOKENS]
    found = {name: sha256(*(t for s in samples for t in (s.features[name].values, s.features[name].scale)))
             for name in ("head", "backbone0", "backbone1", "backbone2")}  # fmt: skip
    found |= {name: sha256(*(sample.head_maps[name] for sample in samples)) for name in ("reg", "vel")}
    found |= {
        name: sha256(*(getattr(sample, name) for sample in samples))
        for name in ("heatmap", "canvas_mask", "view_matrix")
    }
    assert found == VALUES_OF_VERSION_2
    left, right = second.camera_points(TOKENS[2])
    assert (left[0].tolist(), right[0].tolist()) == (
        [1781.171875, 406.828125, 242.095],
        [11.703125, 1749.671875, 28.835],
    )


def test_a_store_of_version_1_is_resumed_as_version_1(tmp_path):
    """Its records stay those of version 1, byte for byte."""
    path = shutil.copytree(GOLDEN, tmp_path / "teacher.zarr")
    attributes = TeacherCache(path).attributes
    weights = TeacherCache(path).head_weights()
    options = {"head_weights": weights, "software": {}, "layout": attributes.layout}
    with StoreWriter(path, attributes.spec, TOKENS, **options, redo=[0]) as writer:
        assert writer.missing_shards() == [0]
        fill(writer)
        assert writer.seal()
    for key in ("zarr.json", "manifest/0.json"):
        assert '"chunks_crc32c"' not in (path / key).read_text()
        assert '"small_arrays"' not in (path / key).read_text()
    assert verify(path).damage == ()
    assert TeacherCache(path).attributes.format_version == 1
