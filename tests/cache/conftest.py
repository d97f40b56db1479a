"""A small store and what it is made of; tests reach the functions here through the fixture `kit`."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cache.codec import Distortion, encode, measure
from cache.grid import BevGrid
from cache.spec import CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from cache.store import Layout, StoredSample, sample_arrays
from cache.writer import WHOLE, Part, StoreWriter

CANVAS = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0), cell_m=(1.0, 1.0))
TASKS = (("car",), ("pedestrian", "traffic_cone"))
LAYERS = {
    "head": (6, 2, CodecSpec()),
    "backbone0": (4, 1, CodecSpec(kind="signed")),
    "backbone1": (3, 2, CodecSpec(kind="float16")),
}
SOFTWARE = {"torch": "2.0", "offline-distillbev": "0.1"}


def make_spec(tokens: tuple[str, ...], **changes: object) -> CacheSpec:
    """A spec of three small layers, one of each codec."""
    values = {
        "teacher": TeacherIdentity(name="small", weights_sha256="a" * 64, config_sha256="b" * 64, tasks=TASKS),
        "data": DataIdentity.of("v1.0-mini", ("mini_train",), tokens),
        "points": PointPipeline(),
        "layers": tuple(
            LayerSpec(name=name, channels=channels, grid=CANVAS.coarser(stride), codec=codec)
            for name, (channels, stride, codec) in LAYERS.items()
        ),
        "heatmap_grid": CANVAS.coarser(2),
        "canvas_grid": CANVAS,
        "head_maps": {"reg": 2, "vel": 2},
    }
    return CacheSpec(**{**values, **changes})


def make_tokens(count: int) -> tuple[str, ...]:
    """Tokens of different lengths that are not in alphabetical order."""
    return tuple(f"{(7 * index) % 10007:04x}" + "f" * (index % 3) for index in range(count))


def make_sample(spec: CacheSpec, seed: int) -> StoredSample:
    """Made-up values that depend on the seed alone."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    distortion: dict[str, Distortion] = {}
    for name, array in sample_arrays(spec).items():
        shape = (len(spec.views), *array.shape)
        if array.dtype == "uint8":
            arrays[name] = random.integers(0, 256, shape).astype(np.uint8)
        elif array.dtype == "float16":
            arrays[name] = random.normal(size=shape).astype(np.float16)
    for layer in spec.layers:
        values = torch.from_numpy(random.normal(size=(1, layer.channels, *layer.grid.shape)).astype(np.float32))
        values = values.relu() if layer.codec.kind == "unsigned" else values
        encoded = encode(values, layer.codec)
        arrays[f"features/{layer.name}"] = encoded.values.numpy()
        if layer.codec.kind != "float16":
            arrays[f"features/{layer.name}_scale"] = encoded.scale.numpy()
        distortion[layer.name] = measure(values, encoded)[0]
    return StoredSample(arrays=arrays, distortion=distortion)


def open_writer(path: Path, count: int = 10, part: Part = WHOLE, size: int = 4, **changes: object) -> StoreWriter:
    """A writer of `count` samples in shards of `size`."""
    tokens = make_tokens(count)
    weights = {"heatmap.weight": torch.arange(6.0).reshape(2, 3)}
    spec = make_spec(tokens, **changes)
    layout = Layout(samples_per_shard=size)
    return StoreWriter(path, spec, tokens, head_weights=weights, software=SOFTWARE, layout=layout, part=part)


def fill(writer: StoreWriter, shards: list[int] | None = None) -> None:
    """Write and commit shards; all missing ones by default."""
    for shard in writer.missing_shards() if shards is None else shards:
        opened = writer.begin(shard)
        opened.add([make_sample(writer.spec, position) for position in writer.positions(shard)])
        opened.commit()


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def make_store(path: Path, **changes: object) -> Path:
    """Make a finished store."""
    with open_writer(path, **changes) as writer:
        fill(writer)
        assert writer.seal()
    return path


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """The functions above."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def sealed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 10 samples in shards of 4, not to be written to."""
    return make_store(tmp_path_factory.mktemp("store") / "teacher.zarr")
