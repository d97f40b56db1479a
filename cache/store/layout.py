"""The Zarr layout, format version 1: names, shapes, chunks, shards, attributes; no file is touched.

A store is a folder:

    zarr.json                     Zarr v3 group: the attributes below, and every array's metadata (consolidated)
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

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from cache.config import Strict
from cache.errors import ConfigError, MismatchError
from cache.spec import FORMAT_VERSION, CacheSpec
from cache.store.codec import Distortion
from cache.store.format import read_signed

ROOT = "zarr.json"
MANIFEST = "manifest"
LOCK = "manifest/lock"
DEPTH = "depth_points"
HEAD_WEIGHTS = "teacher_head.safetensors"


class Layout(Strict):
    """How a store is cut into files; no part of what it says."""

    samples_per_shard: int = Field(32, ge=1, le=64)
    zstd_level: int = Field(1, ge=1, le=19)


class LayerReport(Strict):
    """What the codec lost of a layer over the whole store; no ratio where nothing was lost."""

    sqnr_db: float | None
    largest_error: float
    saturated_fraction: float


class StoreAttributes(Strict):
    """The attributes of the store's group."""

    format_version: Literal[1] = 1
    spec: CacheSpec
    fingerprint: str
    classes: tuple[str, ...]
    """Of the heatmap's channels."""
    tasks: tuple[tuple[str, ...], ...]
    layout: Layout
    software: dict[str, str]
    """Versions of what made the store."""
    head_weights_sha256: str
    codec_report: dict[str, LayerReport] = Field(default_factory=dict)
    """By layer, once sealed."""
    sealed: bool = False
    """All samples are committed."""


class ShardFile(Strict):
    """One file of a committed shard."""

    bytes: int
    index_crc32c: int


class ShardRecord(Strict):
    """What the manifest says of a committed shard."""

    shard: int
    files: dict[str, ShardFile]
    """By array."""
    distortion: dict[str, Distortion]
    """By layer, over the shard's samples."""


@dataclass(frozen=True, kw_only=True)
class SampleArray:
    """An array (N, V, *shape) with a chunk for each sample and view; without `views`, (N, *shape) and one for each."""

    name: str
    dtype: str
    views: int | None
    shape: tuple[int, ...]
    dims: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """Of a sample."""
        return 1 if self.views is None else self.views

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of all that belongs to a sample."""
        return self.shape if self.views is None else (self.views, *self.shape)

    def number(self, row: int, view: int) -> int:
        """The place of a chunk in its shard."""
        return row if self.views is None else row * self.views + view

    def key(self, shard: int) -> str:
        """The shard's file in the store."""
        return f"{self.name}/c.{shard}" + ".0" * len(self.sample_shape)


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample on its way to the store: each array's `sample_shape`, and what the codec did to each layer."""

    arrays: dict[str, np.ndarray]
    distortion: dict[str, Distortion]


def scale_of(feature: str) -> str:
    """The array of a feature array's scales."""
    return f"{feature}_scale"


def view_matrix_shape(spec: CacheSpec) -> tuple[int, ...]:
    """(V, 4, 4); where some views are drawn each sample has its own: (N, V, 4, 4)."""
    shape = (len(spec.views), 4, 4)
    return shape if spec.drawn is None else (spec.data.samples, *shape)


def sample_arrays(spec: CacheSpec) -> dict[str, SampleArray]:
    """The per-sample arrays of a store, by name."""
    array = partial(_sample_array, spec)
    heatmap, canvas = spec.heatmap_grid.shape, spec.canvas_grid.shape
    classes, tasks = len(spec.teacher.classes), len(spec.teacher.tasks)
    arrays = []
    for layer in spec.layers:
        name = f"features/{layer.name}"
        dims = tuple(f"{layer.name}_{axis}" for axis in ("channel", "y", "x"))
        arrays.append(array(name, layer.codec.dtype, (layer.channels, *layer.grid.shape), dims))
        if layer.codec.kind != "float16":
            arrays.append(array(scale_of(name), "float32", (layer.channels,), dims[:1]))
    arrays.append(array("heatmap", "uint8", (classes, *heatmap), ("class", "heatmap_y", "heatmap_x")))
    packed = (canvas[0], -(-canvas[1] // 8))
    arrays.append(array("canvas_mask", "uint8", packed, ("canvas_y", "canvas_x_byte")))
    for name, channels in spec.head_maps.items():
        dims = ("task", f"{name}_channel", "heatmap_y", "heatmap_x")
        arrays.append(array(f"boxes_{name}", "float16", (tasks, channels, *heatmap), dims))
    if spec.depth is not None:
        dims = ("sample", "camera", "u_v_depth", "point")
        arrays.append(SampleArray(name=DEPTH, dtype="uint16", views=None, shape=spec.depth.shape, dims=dims))
    return {each.name: each for each in arrays}


def _sample_array(spec: CacheSpec, name: str, dtype: str, shape: tuple[int, ...], dims: tuple[str, ...]) -> SampleArray:
    return SampleArray(name=name, dtype=dtype, views=len(spec.views), shape=shape, dims=("sample", "view", *dims))


def parse_root(data: bytes, where: str) -> StoreAttributes:
    """The attributes in a store's root document.

    Raises:
        CorruptStoreError: it is broken, or this project did not write it.
        MismatchError: it is of another format version, or says more than this version understands.
    """
    attributes = read_signed(data, where)["attributes"]
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise MismatchError(
            "the store has another format version",
            where=where,
            got=version,
            expected=FORMAT_VERSION,
            cure="Read it with the version of this project that wrote it, or dump it again",
        )
    try:
        return StoreAttributes.parse(attributes, where)
    except ConfigError as error:
        raise MismatchError(
            "the store says what this version does not understand",
            where=where,
            got=error.what,
            cure="Read it with the version of this project that wrote it",
        ) from None


def record_key(shard: int) -> str:
    """The file of a committed shard's record."""
    return f"{MANIFEST}/{shard}.json"


def whole_key(name: str, dimensions: int) -> str:
    """The file of an array that is one chunk."""
    return f"{name}/c" + ".0" * dimensions
