"""Small caches and what they are made of: specs, tokens, samples, writers, stores; a small teacher and its frames."""

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.geometry.grid import BevGrid
from cache.nuscenes.frame import Frame, Sweep
from cache.nuscenes.frames import Frames
from cache.spec import LIDAR, CacheSpec, CodecSpec, DataIdentity, Decoding, LayerSpec, PointPipeline, TeacherIdentity
from cache.store.codec import encode
from cache.store.distortion import Distortion, measure
from cache.store.layout import Layout, StoredSample, sample_arrays
from cache.store.partition import WHOLE, Part
from cache.store.writer import StoreWriter
from cache.teacher.base import TeacherInput, TeacherOutput

CANVAS = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0), cell_m=(1.0, 1.0))

Tasks = tuple[tuple[str, ...], ...]

TASKS: Tasks = (("car",), ("pedestrian", "traffic_cone"))
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
        shape = array.sample_shape
        if array.dtype == "uint8":
            arrays[name] = random.integers(0, 256, shape).astype(np.uint8)
        elif array.dtype == "uint16":
            arrays[name] = random.integers(0, 60000, shape).astype(np.uint16)
        elif array.dtype == "float16":
            arrays[name] = random.normal(size=shape).astype(np.float16)
    for layer in spec.layers:
        values = torch.from_numpy(
            random.normal(size=(len(spec.views), layer.channels, *layer.grid.shape)).astype(np.float32)
        )
        values = values.relu() if layer.codec.kind == "unsigned" else values
        encoded = encode(values, layer.codec)
        arrays[f"features/{layer.name}"] = encoded.values.numpy()
        if layer.codec.kind != "float16":
            arrays[f"features/{layer.name}_scale"] = encoded.scale.numpy()
        distortion[layer.name] = sum(measure(values, encoded), start=Distortion())
    return StoredSample(arrays=arrays, distortion=distortion)


def open_writer(
    path: Path,
    count: int = 10,
    part: Part = WHOLE,
    size: int = 4,
    frames: Mapping[str, bytes] | None = None,
    **changes: object,
) -> StoreWriter:
    """A writer of `count` samples in shards of `size`."""
    tokens = make_tokens(count)
    weights = {"heatmap.weight": torch.arange(6.0).reshape(2, 3)}
    spec = make_spec(tokens, **changes)
    layout = Layout(samples_per_shard=size)
    return StoreWriter(
        path, spec, tokens, head_weights=weights, software=SOFTWARE, layout=layout, part=part, frames=frames
    )


def fill(writer: StoreWriter, shards: list[int] | None = None) -> None:
    """Write and commit shards; all missing ones by default."""
    for shard in writer.missing_shards() if shards is None else shards:
        opened = writer.shard(shard)
        opened.add([make_sample(writer.spec, position) for position in writer.positions(shard)])
        opened.commit()


class PointwiseHead(nn.ModuleDict):
    """One 1x1 convolution for the heatmap and one for each other map."""

    def __init__(self, channels: int, tasks: Tasks, maps: dict[str, int]) -> None:
        sizes = {"heatmap": sum(map(len, tasks)), **{name: len(tasks) * size for name, size in maps.items()}}
        super().__init__({name: nn.Conv2d(channels, size, 1) for name, size in sizes.items()})
        self.task_count = len(tasks)

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps = {name: conv(features) for name, conv in self.items()}
        return maps.pop("heatmap"), {name: value.unflatten(1, (self.task_count, -1)) for name, value in maps.items()}


SMALL_HEAD = partial(PointwiseHead, tasks=TASKS, maps={"reg": 2})


class SmallTeacher(nn.Module):
    """A convolution on a canvas of point counts, a neck, and a centre head with random weights; a `Teacher` in small.

    The neck divides the canvas's resolution by `stride`; there is none for a stride of 1. `make_head` makes the head
    for a number of channels.
    """

    def __init__(
        self,
        *,
        grid: BevGrid = CANVAS,
        channels: int = 4,
        stride: int = 2,
        tasks: Tasks = TASKS,
        make_head: Callable[[int], nn.Module] = SMALL_HEAD,
        past_sweeps: int = 1,
        log_counts: bool = False,
        decoding: Decoding | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Conv2d(1, channels, 3, padding=1)
        self.neck = nn.Conv2d(channels, 6, stride, stride=stride) if stride > 1 else nn.Identity()
        self.head = make_head(6 if stride > 1 else channels)
        self.eval().requires_grad_(False)
        self.identity = TeacherIdentity(
            name="small",
            weights_sha256=f"{seed:064}",
            config_sha256="b" * 64,
            tasks=tasks,
            decoding=decoding or Decoding(),
        )
        self.points = PointPipeline(past_sweeps=past_sweeps)
        self.log_counts = log_counts
        self.canvas_grid, self.heatmap_grid = grid, grid.coarser(stride)
        self.layer_grids = {"backbone0": grid, "head": self.heatmap_grid}

    def prepare(self, frame: TeacherInput) -> Tensor:
        points = frame.points
        height, width = self.canvas_grid.shape
        cells = np.floor(self.canvas_grid.to_cells(points[:, :2])).astype(int)
        counts = np.zeros((height, width), np.float32)
        inside = ((cells >= 0) & (cells < (width, height))).all(axis=1)
        np.add.at(counts, (cells[inside, 1], cells[inside, 0]), 1)
        return torch.from_numpy(counts)

    def forward(self, prepared: list[Tensor]) -> TeacherOutput:
        counts = torch.stack(prepared)[:, None]
        backbone = self.backbone(counts.log1p() if self.log_counts else counts).relu()
        features = self.neck(backbone).relu()
        heatmap, head_maps = self.head(features)
        return TeacherOutput(
            layers={"backbone0": backbone, "head": features},
            heatmap=heatmap.sigmoid(),
            head_maps=head_maps,
            canvas_mask=counts[:, 0] > 0,
        )

    def head_weights(self) -> dict[str, Tensor]:
        return self.head.state_dict()


@dataclass(frozen=True, kw_only=True)
class SmallFrames(Frames):
    """Frames of made-up sweeps, without nuScenes' tables."""

    version: str = "v1.0-mini"
    splits: tuple[str, ...] = ("mini_train",)
    lidar: str = LIDAR
    count: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", make_tokens(self.count))
        self.root.mkdir(exist_ok=True)
        for position, token in enumerate(self.tokens):
            points = np.random.default_rng(position).uniform(-9, 9, (50, 5)).astype(np.float32)
            points.tofile(self.root / f"{token}.bin")

    def __getitem__(self, key: int | str) -> Frame:
        token = self.tokens[key] if isinstance(key, int) else key
        sweep = Sweep(path=self.root / f"{token}.bin", to_key=np.eye(4), lag_s=0.0)
        eye = np.eye(4)
        return Frame(
            token=token, scene="scene-0001", timestamp_us=0, sweeps=(sweep,), cameras=(), boxes=np.zeros((0, 9)),
            labels=np.zeros(0, int), lidar_to_ego=eye, ego_to_global=eye, previous=None,
        )  # fmt: skip


def make_config(**changes: object) -> DumpConfig:
    """A dump of SmallTeacher."""
    layers = {"head": CodecSpec(), "backbone0": CodecSpec()}
    values = {"teacher": "small", "layers": layers, "samples_per_shard": 4, "batch_size": 3, "workers": 0}
    return DumpConfig(**{**values, **changes})


def dump_in_process(frames: Frames, path: Path, part: Part = WHOLE, **changes: object) -> multiprocessing.Process:
    """Start a dump of SmallTeacher in a process of its own."""
    arguments = (make_config(**changes), frames, SmallTeacher(), path)
    process = multiprocessing.get_context("fork").Process(target=dump, args=arguments, kwargs={"part": part})
    process.start()
    return process


def make_store(path: Path, **changes: object) -> Path:
    """Make a finished store."""
    with open_writer(path, **changes) as writer:
        fill(writer)
        assert writer.seal()
    return path
