"""The Zarr layout, format versions 1 and 2: names, shapes, chunks, shards and paths of the arrays.

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
    frames/                       the dumped scenes' rows of the tables' index (cache.nuscenes.index_files); optional
    manifest/<shard>.json         one record for each committed shard; manifest/lock holds the writers' leases

Per-sample arrays are sharded: a chunk is one sample and view, or one sample where there is no V (bytes, zstd, crc32c),
a shard file holds `samples_per_shard` samples and ends with the index of its chunks (Zarr v3 "sharding_indexed").
token, token_order and view_matrix are one chunk each (bytes, crc32c). JSON documents carry the SHA-256 of their own
content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
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
FRAMES = "frames"

FEATURES = "features"
HEATMAP = "heatmap"
CANVAS_MASK = "canvas_mask"
DEPTH_POINTS = "depth_points"
TOKEN = "token"
TOKEN_ORDER = "token_order"
VIEW_MATRIX = "view_matrix"

LARGEST_CHUNK = 2**27
"""Bytes of one view of a sample in an array: 2,048 channels of 256 x 256 cells at 8 bits."""


def feature_array(layer: str) -> str:
    """Name of the array of a layer's codes."""
    return f"{FEATURES}/{layer}"


def scale_array(layer: str) -> str:
    """Name of the array of a layer's scales."""
    return f"{FEATURES}/{layer}_scale"


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

    def shards(self, samples: int) -> range:
        """All shards of a store."""
        return range(-(-samples // self.samples_per_shard))

    def positions(self, shard: int, samples: int) -> range:
        """The samples of a shard, by their positions in dump order."""
        return range(samples)[shard * self.samples_per_shard :][: self.samples_per_shard]


@dataclass(frozen=True, kw_only=True)
class SampleArray:
    """An array (N, V, *shape) with a chunk for each sample and view; without `views`, (N, *shape) and one for each.

    dims: names of the axes of `shape`.
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
    def chunk_bytes(self) -> int:
        """Size of a chunk's values, not compressed."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

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
    array, arrays = partial(SampleArray, views=len(spec.views)), []
    for layer in spec.layers:
        name, shape = layer.name, (layer.channels, *layer.grid.shape)
        dims = (f"{name}_channel", f"{name}_y", f"{name}_x")
        arrays.append(array(name=feature_array(name), dtype=layer.codec.dtype, shape=shape, dims=dims, layer=name))
        if layer.codec.kind != "float16":
            arrays.append(array(name=scale_array(name), dtype="float32", shape=shape[:1], dims=dims[:1]))
    tasks, (height, width), yx = len(spec.teacher.tasks), spec.heatmap_grid.shape, ("heatmap_y", "heatmap_x")
    of_classes = (len(spec.teacher.classes), height, width)
    if spec.heatmap != "none":
        arrays.append(array(name=HEATMAP, dtype="uint8", shape=of_classes, dims=("class", *yx)))
    packed = (spec.canvas_grid.shape[0], -(-spec.canvas_grid.shape[1] // 8))
    arrays.append(array(name=CANVAS_MASK, dtype="uint8", shape=packed, dims=("canvas_y", "canvas_x_byte"), packed=True))
    for name, channels in spec.head_maps.items():
        of_tasks, axes = (tasks, channels, height, width), ("task", f"{name}_channel", *yx)
        arrays.append(array(name=head_map_array(name), dtype="float16", shape=of_tasks, dims=axes))
    if spec.depth is not None:
        shape, dims = spec.depth.shape, ("camera", "u_v_depth", "point")
        arrays.append(array(name=DEPTH_POINTS, dtype="uint16", shape=shape, dims=dims, views=None))
    return {each.name: each for each in arrays}


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
