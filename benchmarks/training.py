"""What distillation costs a training: `python -m benchmarks.training --demo DIR`, DIR being what `make demo` left.

- demo: the demo's student without distillation, from the cache, and with mmdet3d's teacher within every step;
- full: the same with the ResNet-50 student at 256 x 704 and a full-size pillar CenterPoint of random weights, which is
  dumped for it, on the first --frames key frames of --data (the demo's world without it);
- loading: decoders for an image of --data, and the demo's features read by loader workers or by threads;
- lift: lift-splat beside a plain index_add of the same elements, at full size.

The trainings get the same batches, without augmentation, and take turns step by step, each in a process of its own and
without loader workers, so that a step holds all of its costs. Times are medians, with the least and the greatest: wall
time, and the process's own time, which others on the machine disturb less. Ratios are medians over the turns. Memory
is the peak of the whole process on a CPU, of allocated memory on a GPU.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.cache_io import FirstFrames
from benchmarks.contestants import KINDS, Record, Setting, take_turns
from benchmarks.lifting import measure_lift
from benchmarks.loading import measure_decoding, measure_readers
from benchmarks.tables import ratio, show, spread
from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.nuscenes.frames import Frames
from cache.store.reader import TeacherCache
from cache.teacher.mmdet3d import load_teacher
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset

CONFIGS = Path(__file__).parent.parent / "configs"
MINI = ["data.version=v1.0-mini", "data.workers=0"]
MOST_TIME, MOST_MEMORY = 1.10, 1.05
"""What a training from the cache may cost, of one without distillation."""


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {'cuda' if torch.cuda.is_available() else 'cpu'}, {options.threads} threads")
    parts = options.parts.split(",")
    if "demo" in parts:
        report("the demo's student and teacher", _demo(options), options.steps)
    if "full" in parts:
        with tempfile.TemporaryDirectory() as folder:
            report("full size", _full(options, Path(folder) / "teacher.zarr"), options.full_steps)
    if "loading" in parts:
        measure_decoding(_frames(options)[0].cameras, options.rounds)
        measure_readers(_demo(options), rounds=3)
    if "lift" in parts:
        _lift(options)


def _demo(options: argparse.Namespace) -> Setting:
    config = load_yaml(CONFIGS / "demo" / "student.yaml", StudentConfig, [*MINI, "data.unlabelled_split=null"])
    root = options.demo / "world"
    return Setting(
        student=config,
        root=root,
        tokens=Frames(root=root, version="v1.0-mini", splits=("made_labelled",)).tokens,
        store=options.demo / "teacher.zarr",
        teacher=str(CONFIGS / "demo" / "teacher_model.py"),
        checkpoint=options.demo / "teacher" / "teacher.pth",
        threads=options.threads,
    )


def _full(options: argparse.Namespace, store: Path) -> Setting:
    """Dump the full-size teacher on some frames."""
    root, split = _where(options)
    batch = f"training.batch_size={options.batch}"
    changes = [*MINI, f"data.train_split={split}", f"data.val_split={split}", batch]
    config = load_yaml(CONFIGS / "bevdepth_r50.yaml", StudentConfig, changes)
    frames = FirstFrames(root=root, version="v1.0-mini", splits=(split,), first=options.frames)
    settings = load_yaml(
        CONFIGS / "centerpoint_pillar02.yaml", DumpConfig, ["version=v1.0-mini", f"splits=[{split}]", "workers=0"]
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(dump(settings, frames, load_teacher(settings.teacher, None, device), store))
    return Setting(
        student=config,
        root=root,
        tokens=frames.tokens,
        store=store,
        teacher=settings.teacher,
        checkpoint=None,
        threads=options.threads,
    )


def report(name: str, setting: Setting, steps: int) -> None:
    """Run a setting's trainings and print what they cost and how their losses differ."""
    records = take_turns(setting, steps)
    alone = records["alone"]
    size = setting.student.training.batch_size
    columns = ("training", "s a step", "of alone", "process s a step", "of alone", "samples/s", "peak MB", "of alone")
    show(
        f"{name}: {steps} steps of {size} samples", columns, [_row(kind, records[kind], alone, size) for kind in KINDS]
    )
    time_ratio = _middle(records["cached"].processes(), alone.processes())
    memory_ratio = records["cached"].peak_bytes / alone.peak_bytes
    print(f"\ncached / alone: process time {time_ratio:.3f} (target: at most {MOST_TIME}), ", end="")
    print(f"peak memory {memory_ratio:.3f} (at most {MOST_MEMORY})")
    print(f"live / cached: process time {_middle(records['live'].processes(), records['cached'].processes()):.2f}")
    _compare_losses(records, TeacherCache(setting.store))


def _row(kind: str, record: Record, alone: Record, batch_size: int) -> tuple[str, ...]:
    walls, processes = record.walls(), record.processes()
    return (
        kind,
        spread(walls),
        ratio(walls, alone.walls()),
        spread(processes),
        ratio(processes, alone.processes()),
        f"{batch_size / statistics.median(walls):.3g}",
        f"{record.peak_bytes / 2**20:.0f}",
        f"{record.peak_bytes / alone.peak_bytes:.3f}",
    )


def _middle(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _compare_losses(records: dict[str, Record], cache: TeacherCache) -> None:
    """The live training's loss beside that with the cache at the same weights, and beside the cached training's.

    The first differ by the codec alone; the second also by what training makes of that, step by step.
    """
    live, cached = records["live"].steps, records["cached"].steps
    rows, largest = [], 0.0
    for number, (ours, apart) in enumerate(zip(live, cached, strict=True), start=1):
        assert ours.cached_loss is not None  # a live training's steps have it
        same = abs(ours.cached_loss - ours.loss) / abs(ours.loss)
        largest = max(largest, same)
        values = f"{ours.loss:.5f}", f"{ours.cached_loss:.5f}", f"{same:.1e}", f"{apart.loss:.5f}"
        rows.append((number, *values, f"{abs(apart.loss - ours.loss) / abs(ours.loss):.1e}"))
    shown = sorted({0, 1, 2, 4, 9, 19, 49, 99, len(rows) - 1} & set(range(len(rows))))
    columns = ("step", "live", "the cache at its weights", "differ by", "trained from the cache", "differ by")
    show("loss, the same batches", columns, [rows[step] for step in shown])
    print(f"\nlargest relative difference of the losses at the same weights: {largest:.1e}")
    for layer, error in cache.attributes.codec_report.items():
        if error.sqnr_db is not None:
            print(f"the codec's relative RMS error of layer {layer}: {10 ** (-error.sqnr_db / 20):.1e}")


def _lift(options: argparse.Namespace) -> None:
    config = load_yaml(CONFIGS / "bevdepth_r50.yaml", StudentConfig, MINI)
    frames = _frames(options)
    dataset = StudentDataset(frames, config)
    batch = dataset.collate([dataset[position % len(frames)] for position in range(options.batch)])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure_lift(batch, config.detector, config.image.size, options.rounds, device)


def _where(options: argparse.Namespace) -> tuple[Path, str]:
    """Root and split: of the data that is given, or the demo's."""
    return (options.data, "mini_train") if options.data else (options.demo / "world", "made_train")


def _frames(options: argparse.Namespace) -> Frames:
    root, split = _where(options)
    return Frames(root=root, version="v1.0-mini", splits=(split,))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="what `make demo` left")
    parser.add_argument("--data", type=Path, help="nuScenes root with v1.0-mini tables, for the full size")
    parser.add_argument("--parts", default="demo,full,loading,lift")
    parser.add_argument("--steps", type=int, default=40, help="of the demo's student")
    parser.add_argument("--full-steps", type=int, default=4)
    parser.add_argument("--frames", type=int, default=4, help="to dump at full size")
    parser.add_argument("--batch", type=int, default=1, help="samples a step at full size")
    parser.add_argument("--rounds", type=int, default=9, help="of lift-splat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
