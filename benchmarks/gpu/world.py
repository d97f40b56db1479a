"""What all parts measure: made-up frames, a pillar teacher in plain torch, its store, and a student."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.geometry.grid import BevGrid
from cache.nuscenes.frame import Camera, Frame, Sweep
from cache.nuscenes.frames import CAMERAS, Frames
from cache.spec import LIDAR, CodecSpec, PointPipeline, TeacherIdentity
from cache.store.batch import TeacherBatch
from cache.teacher.base import TeacherInput, TeacherOutput
from cache.teacher.checkpoint import weights_sha256
from student.config.student import TASKS, HeadConfig, StudentConfig
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.teacher_source import TeacherSource
from student.models.center_head import CenterHead

RECIPE = Path(__file__).parents[2] / "configs" / "bevdepth_r50.yaml"
SMALL = [
    "image.size=[64, 96]",
    "detector.image_backbone=resnet18",
    "detector.image_neck_channels=32",
    "detector.depth_m=[1.0, 17.0, 1.0]",
    "detector.grid={x_range_m: [-12.8, 12.8], y_range_m: [-12.8, 12.8], cell_m: [0.8, 0.8]}",
    "detector.lift_channels=16",
    "detector.bev_channels=[16, 32, 64]",
    "detector.bev_neck_channels=32",
]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Full size, or a size that a CPU rehearses within seconds.

    widths: channels of the teacher's three stages; the neck has twice the last.
    """

    small: bool
    frames: int = 16
    image_size: tuple[int, int] = (900, 1600)
    points: int = 34_000
    range_m: float = 51.2
    widths: tuple[int, int, int] = (64, 128, 256)
    depths: tuple[int, int, int] = (3, 5, 5)
    batch: int = 8

    @classmethod
    def of(cls, small: bool) -> "Sizes":
        """The full size, or the small one."""
        if not small:
            return cls(small=False)
        reduced = {"frames": 6, "image_size": (90, 160), "points": 2_000, "range_m": 12.8, "batch": 2}
        return cls(small=True, widths=(8, 16, 32), depths=(1, 1, 1), **reduced)  # type: ignore[arg-type]

    @property
    def canvas(self) -> BevGrid:
        """The teacher's pillars of 0.2 m."""
        span = (-self.range_m, self.range_m)
        return BevGrid(x_range_m=span, y_range_m=span, cell_m=(0.2, 0.2))

    def student(self, *changes: str) -> StudentConfig:
        """DistillBEV's recipe."""
        small = SMALL if self.small else []
        return load_yaml(RECIPE, StudentConfig, [*small, f"training.batch_size={self.batch}", *changes])


@dataclass(frozen=True, kw_only=True)
class MadeUpFrames(Frames):
    """Frames of random points in ten sweeps, smooth random images and 40 boxes, without nuScenes' tables.

    total: number of frames, which share the files of `sizes.frames`.
    """

    sizes: Sizes
    total: int
    version: str = "v1.0-mini"
    splits: tuple[str, ...] = ("mini_train",)
    lidar: str = LIDAR
    cameras: tuple[str, ...] = CAMERAS
    tokens: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(f"{number:032x}" for number in range(self.total)))

    def __getitem__(self, key: int | str) -> Frame:  # type: ignore[override]
        number = key if isinstance(key, int) else self.tokens.index(key)
        files = [(number + past) % self.sizes.frames for past in range(10)]
        rng = np.random.default_rng(number)
        boxes = np.zeros((40, 9))
        boxes[:, :2] = rng.uniform(-self.sizes.range_m, self.sizes.range_m, (40, 2))
        boxes[:, 2:7] = np.column_stack([np.full((40, 4), (-1.0, 4.2, 1.9, 1.6)), rng.uniform(-3, 3, 40)])
        return Frame(
            token=self.tokens[number],
            scene="scene-0001",
            timestamp_us=number,
            sweeps=tuple(
                Sweep(path=self.root / f"{file}.bin", to_key=np.eye(4), lag_s=0.05 * past)
                for past, file in enumerate(files)
            ),
            cameras=tuple(self._camera(number, index) for index in range(len(CAMERAS))),
            boxes=boxes,
            labels=rng.integers(0, 10, 40),
            lidar_to_ego=np.eye(4),
            ego_to_global=np.eye(4),
            previous=None,
        )

    def _camera(self, number: int, index: int) -> Camera:
        """At the LiDAR, one every 60 degrees, with an opening of about 70."""
        height, width = self.sizes.image_size
        angle = index * np.pi / 3
        pose = np.eye(4)
        pose[:3, :3] = np.transpose([[np.sin(angle), -np.cos(angle), 0], [0, 0, -1], [np.cos(angle), np.sin(angle), 0]])
        intrinsics = np.array([[0.79 * width, 0, width / 2], [0, 0.79 * width, height / 2], [0, 0, 1]])
        path = self.root / f"{number % self.sizes.frames}-{index}.jpg"
        return Camera(name=CAMERAS[index], path=path, intrinsics=intrinsics, to_lidar=pose, size=(height, width))


def make_frames(root: Path, sizes: Sizes, total: int | None = None) -> MadeUpFrames:
    """Frames (by default as many as have files of their own), and their files if they are not there."""
    done, rng = root / "done", np.random.default_rng(0)
    if not done.exists():
        root.mkdir(parents=True, exist_ok=True)
        height, width = sizes.image_size
        for number in range(sizes.frames):
            radius, angle = sizes.range_m * rng.random(sizes.points) ** 2, rng.uniform(0, 2 * np.pi, sizes.points)
            heights, rest = rng.uniform(-3, 1, sizes.points), rng.uniform(0, 255, (2, sizes.points))
            points = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), heights, *rest])
            points.astype(np.float32).tofile(root / f"{number}.bin")
            for index in range(len(CAMERAS)):
                pixels = rng.integers(0, 256, (height // 9, width // 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((width, height)).save(root / f"{number}-{index}.jpg", quality=90)
        done.touch()
    return MadeUpFrames(root=root, sizes=sizes, total=total or sizes.frames)


@dataclass(frozen=True, kw_only=True)
class Pillars:
    """In a loader worker: points within the canvas, as (x, y, z, intensity, lag), and the cell of each."""

    canvas: BevGrid

    def __call__(self, frame: TeacherInput) -> tuple[Tensor, Tensor]:
        cells = np.floor(self.canvas.to_cells(frame.points[:, :2].astype(np.float64))).astype(np.int64)
        height, width = self.canvas.shape
        inside = ((cells >= 0) & (cells < (width, height))).all(axis=1)
        flat = cells[inside, 1] * width + cells[inside, 0]
        return torch.from_numpy(frame.points[inside].astype(np.float32)), torch.from_numpy(flat)


class PillarTeacher(nn.Module):
    """PointPillars' encoder, SECOND's backbone and neck, and CenterPoint's head, with random weights.

    Of the sizes of mmdet3d's pillar CenterPoint: canvas 64 x 512 x 512, stages 64 x 256 x 256, 128 x 128 x 128 and
    256 x 64 x 64, neck 384 x 128 x 128. A pillar keeps all its points.
    """

    def __init__(self, sizes: Sizes, device: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, _, last = sizes.widths
        self.encoder = nn.Sequential(nn.Linear(5, first), nn.BatchNorm1d(first), nn.ReLU())
        before = (first, *sizes.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(_block(inner, width, stride=2), *(_block(width, width, stride=1) for _ in range(depth)))
            for inner, width, depth in zip(before, sizes.widths, sizes.depths, strict=False)
        )
        neck = last // 2
        self.neck = nn.ModuleList(
            [
                _block(sizes.widths[0], neck, stride=2),
                _block(sizes.widths[1], neck, stride=1),
                nn.Sequential(nn.ConvTranspose2d(last, neck, 2, stride=2, bias=False), nn.BatchNorm2d(neck), nn.ReLU()),
            ]
        )
        self.head = CenterHead(3 * neck, HeadConfig())
        self.to(device).eval().requires_grad_(False)
        self.device, canvas = device, sizes.canvas
        self.identity = TeacherIdentity(
            name="made-up pillars",
            weights="random",
            weights_sha256=weights_sha256(self),
            config_sha256="0" * 64,
            tasks=TASKS,
        )
        self.points = PointPipeline(past_sweeps=9)
        self.canvas_grid, self.heatmap_grid = canvas, canvas.coarser(4)
        self.layer_grids = {f"backbone{stage}": canvas.coarser(2 ** (stage + 1)) for stage in range(3)}
        self.layer_grids["head"] = self.heatmap_grid
        self.prepare = Pillars(canvas=canvas)

    def forward(self, prepared: Sequence[tuple[Tensor, Tensor]]) -> TeacherOutput:
        height, width = self.canvas_grid.shape
        points = torch.cat([cloud for cloud, _ in prepared]).to(self.device, non_blocking=True)
        flat = torch.cat([cells + index * height * width for index, (_, cells) in enumerate(prepared)])
        flat = flat.to(self.device, non_blocking=True)
        encoded = self.encoder(points)
        canvas = encoded.new_zeros(len(prepared) * height * width, encoded.shape[1])
        canvas.scatter_reduce_(0, flat[:, None].expand_as(encoded), encoded, "amax")
        mask = torch.zeros(len(canvas), dtype=torch.bool, device=self.device).index_fill_(0, flat, True)
        x = canvas.view(len(prepared), height, width, -1).permute(0, 3, 1, 2)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        neck = torch.cat([part(of_stage) for part, of_stage in zip(self.neck, stages, strict=True)], dim=1)
        heatmap, head_maps = self.head(neck)
        layers = {f"backbone{number}": of_stage for number, of_stage in enumerate(stages)} | {"head": neck}
        return TeacherOutput(
            layers=layers,
            heatmap=heatmap.sigmoid(),
            head_maps=head_maps,
            canvas_mask=mask.view(len(prepared), height, width),
        )

    def head_weights(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self.head.state_dict().items()}


def _block(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


def dump_config(sizes: Sizes, workers: int) -> DumpConfig:
    """The recipe's three layers, and the head's maps."""
    layers = {name: CodecSpec(target_sqnr_db=38) for name in ("head", "backbone1", "backbone2")}
    return DumpConfig(teacher="made-up", layers=layers, workers=workers, batch_size=4)


def make_store(folder: Path, sizes: Sizes, device: str) -> Path:
    """The store of all frames, dumped if it is not there."""
    path, frames = folder / "teacher.zarr", make_frames(folder / "frames", sizes)
    if not path.exists():  # nor does it before it is complete, where a part has been ended
        unfinished = folder / "unfinished.zarr"
        dump(dump_config(sizes, workers=0), frames, PillarTeacher(sizes, device), unfinished)
        unfinished.rename(path)
    return path


def make_dataset(folder: Path, sizes: Sizes, config: StudentConfig, device: str) -> StudentDataset:
    """The student's samples; with the teacher's if it distils."""
    frames = make_frames(folder / "frames", sizes)
    sources = (TeacherSource.open(make_store(folder, sizes, device), config),) if config.distill else ()
    return StudentDataset(frames, config, times=1, with_depth=True, sources=sources)


def of_size(batch: Batch, samples: int) -> Batch:
    """A batch of that many samples, the same few again and again."""
    index = torch.arange(samples) % len(batch)

    def repeat(value: object) -> object:
        match value:
            case Tensor():
                return value[index.to(value.device)]
            case TeacherBatch():
                repeated = value._each(lambda part: part[index.to(part.device)])
                return replace(repeated, tokens=tuple(value.tokens[i] for i in index.tolist()))
            case _:
                return value

    changed = {part.name: repeat(getattr(batch, part.name)) for part in fields(batch)}
    for name in ("tokens", "boxes", "labels"):
        changed[name] = tuple(getattr(batch, name)[i] for i in index.tolist())
    changed["teachers"] = tuple(repeat(teacher) for teacher in batch.teachers)
    changed["to_teachers"] = tuple(repeat(matrix) for matrix in batch.to_teachers)
    return Batch(**changed)  # type: ignore[arg-type]


def relative_difference(ours: Float[Tensor, "*n"], theirs: Float[Tensor, "*m"]) -> float:
    """Length of the difference over the length of the second, in float64 on the CPU; infinite where shapes differ, as
    of detections of which one more is suppressed."""
    if ours.shape != theirs.shape:
        return math.inf
    a, b = ours.detach().cpu().double().flatten(), theirs.detach().cpu().double().flatten()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30))
