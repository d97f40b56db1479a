"""The Zarr layout, format version 1: names, shapes, chunks and shards of the arrays, and the paths of their files.

A store is a folder:

    zarr.json                     Zarr v3 group: StoreAttributes, and every array's metadata (consolidated)
    features/<layer>/             uint8, int8 or float16 (N, V, C, H, W)
    features/<layer>_scale/       float32 (N, V, C); none for float16
    heatmap/                      uint8 (N, V, K, H, W), probability * 255
    canvas_mask/                  uint8 (N, V, H, W / 8), numpy.packbits
    boxes_<name>/                 float16 (N, V, T, D, H, W), the head's other maps
    depth_points/                 uint16 (N, cameras, 3, P), where the key sweep's points are kept
    token/, token_order/          uint8 (N, bytes) padded with zeros; int64 (N,), the order that sorts them
    view_matrix/                  float32 (V, 4, 4), canonical LiDAR -> the BEV frame of the view; (N, V, 4, 4) where
                                  some views are drawn
    teacher_head.safetensors      the head's weights
    manifest/<shard>.json         one record for each committed shard; manifest/lock holds the writers' leases

Per-sample arrays are sharded: a chunk is one sample and view, or one sample where there is no V (bytes, zstd, crc32c),
a shard file holds `samples_per_shard` samples and ends with the index of its chunks (Zarr v3 "sharding_indexed").
token, token_order and view_matrix are one chunk each (bytes, crc32c). JSON documents carry the SHA-256 of their own
content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
from pydantic import Field

from cache.config import Strict
from cache.spec import CacheSpec
from cache.store.distortion import Distortion

ROOT = "zarr.json"
MANIFEST = "manifest"
LOCK = "manifest/lock"
HEAD_WEIGHTS = "teacher_head.safetensors"

HEATMAP = "heatmap"
CANVAS_MASK = "canvas_mask"
DEPTH_POINTS = "depth_points"
TOKEN = "token"
TOKEN_ORDER = "token_order"
VIEW_MATRIX = "view_matrix"


def feature_array(layer: str) -> str:
    """Name of the array of a layer's codes."""
    return f"features/{layer}"


def scale_array(layer: str) -> str:
    """Name of the array of a layer's scales."""
    return f"features/{layer}_scale"


def head_map_array(name: str) -> str:
    """Name of the array of one of the head's maps other than the heatmap."""
    return f"boxes_{name}"


def batch_arrays(layers: Iterable[str]) -> set[str]:
    """Names of the arrays that a batch of these layers without head maps is read from (float16 layers lack a scale)."""
    return {HEATMAP, CANVAS_MASK} | {name(layer) for layer in layers for name in (feature_array, scale_array)}


class Layout(Strict):
    """How a store is cut into files; not part of its content."""

    samples_per_shard: int = Field(32, ge=1, le=64)
    zstd_level: int = Field(1, ge=1, le=19)


@dataclass(frozen=True, kw_only=True)
class SampleArray:
    """An array (N, V, *shape) with a chunk for each sample and view; without `views`, (N, *shape) and one for each.

    layer: whose codes the array holds; None for any other array.
    packed: each byte holds eight values (numpy.packbits).
    """

    name: str
    dtype: str
    views: int | None
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    layer: str | None = None
    packed: bool = False

    @property
    def chunks(self) -> int:
        """Number of chunks of a sample."""
        return 1 if self.views is None else self.views

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of all that belongs to a sample."""
        return self.shape if self.views is None else (self.views, *self.shape)

    @property
    def float32_bytes(self) -> int:
        """Size of a sample's values as float32."""
        return 4 * prod(self.sample_shape) * (8 if self.packed else 1)

    def chunk_number(self, row: int, view: int) -> int:
        """Position of a chunk in its shard."""
        return row if self.views is None else row * self.views + view

    def key(self, shard: int) -> str:
        """Path of a shard's file in the store."""
        return f"{self.name}/c.{shard}" + ".0" * len(self.sample_shape)


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample to be written: each array's `sample_shape`, and what the codec did to each layer."""

    arrays: dict[str, np.ndarray]
    distortion: dict[str, Distortion]


def sample_arrays(spec: CacheSpec) -> dict[str, SampleArray]:
    """The per-sample arrays of a store, by name."""
    arrays: dict[str, SampleArray] = {}

    def add(
        name: str, dtype: str, shape: tuple[int, ...], *dims: str, layer: str | None = None, packed: bool = False
    ) -> None:
        arrays[name] = SampleArray(
            name=name,
            dtype=dtype,
            views=len(spec.views),
            shape=shape,
            dims=("sample", "view", *dims),
            layer=layer,
            packed=packed,
        )

    heatmap, (canvas_height, canvas_width) = spec.heatmap_grid.shape, spec.canvas_grid.shape
    for layer in spec.layers:
        name, channel = layer.name, f"{layer.name}_channel"
        shape = (layer.channels, *layer.grid.shape)
        add(feature_array(name), layer.codec.dtype, shape, channel, f"{name}_y", f"{name}_x", layer=name)
        if layer.codec.kind != "float16":
            add(scale_array(name), "float32", (layer.channels,), channel)
    add(HEATMAP, "uint8", (len(spec.teacher.classes), *heatmap), "class", "heatmap_y", "heatmap_x")
    add(CANVAS_MASK, "uint8", (canvas_height, -(-canvas_width // 8)), "canvas_y", "canvas_x_byte", packed=True)
    for name, channels in spec.head_maps.items():
        shape = (len(spec.teacher.tasks), channels, *heatmap)
        add(head_map_array(name), "float16", shape, "task", f"{name}_channel", "heatmap_y", "heatmap_x")
    if spec.depth is not None:
        dims = ("sample", "camera", "u_v_depth", "point")
        arrays[DEPTH_POINTS] = SampleArray(
            name=DEPTH_POINTS, dtype="uint16", views=None, shape=spec.depth.shape, dims=dims
        )
    return arrays


def view_matrix_shape(spec: CacheSpec) -> tuple[int, ...]:
    """(V, 4, 4); (N, V, 4, 4) where some views are drawn, since each sample then has its own."""
    shape = (len(spec.views), 4, 4)
    return shape if spec.drawn is None else (spec.data.samples, *shape)


def record_key(shard: int) -> str:
    """Path of a committed shard's record in the store."""
    return f"{MANIFEST}/{shard}.json"


def whole_key(name: str, dimensions: int) -> str:
    """Path of the only chunk of an array in one chunk."""
    return f"{name}/c" + ".0" * dimensions
