"""The store's size and speed beside its bounds and its peers, in one run: `python -m benchmarks.cache_io`.

A full-size pillar CenterPoint with random weights looks at a made-up world (or at --data) and is dumped.

- write: the dump beside the teacher alone (the same loader, its outputs thrown away), taking turns;
- size: every codec on the teacher's features, and with --demo on those of the demo's trained teacher, with the mAP of
  its own head on what is read back;
- read: one thread beside the floor, one pread and one decompression of the same bytes into the same buffers;
- end to end: a DataLoader of two workers and batches of four, beside other formats and other readers of the store, from
  a warm page cache and after POSIX_FADV_DONTNEED;
- open: a store of a million samples beside one of a hundred, each in a process of its own.

What is read are the head's features, 384 x 128 x 128, of --samples samples: the dumped ones, turned and mirrored, which
are other bytes of the same kind. Figures are medians, with the least and the greatest. Peers whose packages are
not installed are named as such; the packages are the extra `benchmark`.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import io_loaders, io_open, io_read, io_write, ladder
from benchmarks.tables import show
from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from cache.teacher.mmdet3d import load_teacher
from demo.world.config import WorldConfig
from demo.world.make import make_world

CONFIGS = Path(__file__).parent.parent / "configs"
LAYERS = "layers={head: {target_sqnr_db: 38}, backbone1: {target_sqnr_db: 38}, backbone2: {target_sqnr_db: 38}}"
MINI = ["version=v1.0-mini", "splits=[mini_train,mini_val]", "workers=1", LAYERS]


@dataclass(frozen=True, kw_only=True)
class FirstFrames(Frames):
    """The first key frames of the splits."""

    first: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", self.tokens[: self.first])


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.samples} samples to read")
    parts = options.parts.split(",")
    if "demo" in parts and options.demo is not None:
        _demo_sizes(options)
    with _workplace(options.folder) as folder:
        if {"write", "size"} & set(parts):
            _with_teacher(options, parts, folder)
        if {"read", "loaders", "open"} & set(parts):
            many = io_read.turned(TeacherCache(folder / "dumped.zarr"), folder / "many.zarr", options.samples)
        if "read" in parts:
            io_read.report(TeacherCache(many), options.rounds)
        if "loaders" in parts:
            io_loaders.report(many, folder, options.epochs)
        if "open" in parts:
            io_open.report(TeacherCache(many).attributes, folder)


def _with_teacher(options: argparse.Namespace, parts: Sequence[str], folder: Path) -> None:
    """The full-size teacher's parts; the network is gone afterwards."""
    data = options.data or _world(folder / "world", options.frames)
    config = load_yaml(CONFIGS / "centerpoint_pillar02.yaml", DumpConfig, MINI)
    frames = FirstFrames(root=data, version=config.version, splits=config.splits, first=options.frames)
    teacher = load_teacher(config.teacher, checkpoint=None)
    if "write" in parts:
        io_write.report(config, frames, teacher, folder, options.turns)
    if "size" in parts:
        features = ladder.layer_of(teacher, frames, range(0, len(frames), -(-len(frames) // 4)), "head")
        rungs = list(ladder.climb(features))
        show("size: full size, head 384 x 128 x 128", _SIZE_COLUMNS, map(_size_row, rungs))
        _plot(options, "full size", rungs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="samples to read")
    parser.add_argument("--frames", type=int, default=28, help="frames that the teacher sees")
    parser.add_argument("--data", type=Path, help="nuScenes root with v1.0-mini, instead of a made-up world")
    parser.add_argument("--demo", type=Path, help="folder of `make demo`: its world and its trained teacher")
    parser.add_argument("--demo-config", type=Path, default=CONFIGS / "demo" / "teacher_model.py")
    parser.add_argument("--demo-split", default="made_val", help="the demo's frames for the mAP")
    parser.add_argument("--plots", type=Path, help="folder for pictures of the sizes")
    parser.add_argument(
        "--parts", default="demo,write,size,read,loaders,open", help="what to measure; read needs write"
    )
    parser.add_argument("--folder", type=Path, help="work there and keep it, instead of a temporary folder")
    parser.add_argument("--turns", type=int, default=2, help="of dump and teacher alone")
    parser.add_argument("--rounds", type=int, default=5, help="of single-thread reading")
    parser.add_argument("--epochs", type=int, default=3, help="of each warm DataLoader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.samples > io_read.IMAGES * options.frames:
        parser.error(f"{options.frames} frames give at most {io_read.IMAGES * options.frames} different samples")
    return options


@contextmanager
def _workplace(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _world(path: Path, frames: int) -> Path:
    """Full-size range and sweeps; nobody looks at the images."""
    key_frames = max(2, -(-frames // 4))
    make_world(
        path,
        WorldConfig(
            train_scenes=3,
            val_scenes=1,
            key_frames=key_frames,
            past_sweeps=9,
            image_size=(32, 57),
            range_m=50,
            objects=72,
        ),
    )
    return path


def _plot(options: argparse.Namespace, name: str, rungs: list[ladder.Rung]) -> None:
    if options.plots is not None:
        ladder.plot(rungs, name, options.plots / f"ladder-{name.replace(' ', '-')}.png")


_SIZE_COLUMNS = ("codec", "SQNR, dB", "bytes a sample", "smaller than float32", "encode, ms", "decompress, ms")


def _size_row(rung: ladder.Rung) -> tuple[str, ...]:
    times = f"{rung.encode_ms:.1f}", f"{rung.decompress_ms:.1f}"
    return rung.name, f"{rung.distortion.sqnr_db:.1f}", f"{rung.bytes:,.0f}", f"{rung.smaller:.1f} x", *times


def _demo_sizes(options: argparse.Namespace) -> None:
    """The demo's teacher: every codec, and what its own head finds in the features."""
    teacher = load_teacher(str(options.demo_config), options.demo / "teacher" / "teacher.pth")
    frames = Frames(root=options.demo / "world", version="v1.0-mini", splits=(options.demo_split,))
    features = ladder.layer_of(teacher, frames, range(len(frames)), "head")
    live = ladder.head_metrics(teacher, features, frames)
    rungs, rows = list(ladder.climb(features)), []
    _plot(options, "demo", rungs)
    for rung in rungs:
        found = ladder.head_metrics(teacher, ladder.read_back(features, rung.codec), frames)
        differences = f"{100 * (found.mean_ap - live.mean_ap):+.2f}", f"{100 * (found.nds - live.nds):+.2f}"
        rows.append((*_size_row(rung)[:4], *differences))
    shape = " x ".join(map(str, features.shape[1:]))
    title = f"size: the demo's teacher, head {shape}; live mAP {100 * live.mean_ap:.2f}, NDS {100 * live.nds:.2f}"
    show(f"{title}, {len(frames)} frames", (*_SIZE_COLUMNS[:4], "mAP, points", "NDS, points"), rows)


if __name__ == "__main__":
    main()
