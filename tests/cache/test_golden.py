"""Stores of format version 1 stay readable for ever: tests/data/store-v1 was written once, and is never rewritten."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from cache.reader import TeacherCache
from cache.verify import verify

GOLDEN = Path(__file__).parents[1] / "data" / "store-v1"
TOKENS = ("0000", "0007f", "000eff", "0015", "001cf")

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


def test_what_it_says_of_itself(cache):
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


def test_it_is_sound():
    assert verify(GOLDEN).damage == ()


def test_plain_zarr_reads_it(cache):
    group = zarr.open_group(GOLDEN, mode="r")
    for row, token in enumerate(TOKENS):
        np.testing.assert_array_equal(group["features/backbone0"][row], cache[token].features["backbone0"].values)
        np.testing.assert_array_equal(group["boxes_vel"][row], cache[token].head_maps["vel"])
