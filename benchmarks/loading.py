"""Loading of a training's data: decoders of JPEG, and readers of the teacher's features."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.contestants import Setting
from benchmarks.tables import show, spread
from cache.nuscenes.frame import Camera
from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from cache.store.prefetch import prefetched
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.images import read_image
from student.data.teacher_source import TeacherSource
from student.training.module import StudentModule

STEPS = 12


def measure_decoding(cameras: Sequence[Camera], rounds: int) -> None:
    """Print milliseconds an image of each decoder, for an input of 704 columns."""
    scale = 704 / cameras[0].size[1]
    decoders: dict[str, Callable[[Camera], object]] = {
        "this reader": lambda camera: read_image(camera, scale),
        "Pillow, full size": lambda camera: np.asarray(Image.open(camera.path).convert("RGB")),
        "OpenCV, half size": lambda camera: cv2.cvtColor(
            cv2.imread(str(camera.path), cv2.IMREAD_REDUCED_COLOR_2), cv2.COLOR_BGR2RGB
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for camera in cameras:
            for name, decode in decoders.items():
                began = time.process_time()
                decode(camera)
                times[name].append(1e3 * (time.process_time() - began))
    height, width = cameras[0].size
    rows = [(name, spread(values)) for name, values in times.items()]
    show(f"decoding {width} x {height} for 704 columns", ("", "process time, ms"), rows)


def measure_readers(setting: Setting, rounds: int) -> None:
    """Print seconds a step with the features read by loader workers and by threads of this process, taking turns."""
    config = setting.student
    frames = Frames(root=setting.root, version=config.data.version, splits=(config.data.train_split,), max_sweeps=0)
    source = TeacherSource.open(setting.store, config)
    module = StudentModule(config, [source.cache.spec]).train()
    detector = module.detector
    bare = StudentDataset(frames, config, detector.times, detector.supervise_depth)
    whole = StudentDataset(frames, config, detector.times, detector.supervise_depth, [source])
    size = config.training.batch_size
    positions = [position % len(frames) for position in range(STEPS * size)]
    batches = [positions[start : start + size] for start in range(0, len(positions), size)]
    readers = {
        (name, workers): partial(reader, batches, workers)
        for workers in (0, 1, 2)
        for name, reader in (("collate", partial(_by_workers, whole)), ("threads", partial(_by_threads, bare, source)))
    }
    times: dict[tuple[str, int], list[float]] = {key: [] for key in readers}
    for _ in range(rounds):
        for key, reader in readers.items():
            times[key] += _step_seconds(module, reader())
    rows = [(f"{workers} workers", name, spread(values)) for (name, workers), values in times.items()]
    show(f"features read by the loader's collate or by two threads: {STEPS} steps", ("", "", "s a step"), rows)


def _by_workers(dataset: StudentDataset, batches: list[list[int]], workers: int) -> Iterator[Batch]:
    yield from Loader(dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=workers)


def _by_threads(
    dataset: StudentDataset, source: TeacherSource, batches: list[list[int]], workers: int
) -> Iterator[Batch]:
    tokens = [[dataset.frames.tokens[position] for position in batch] for batch in batches]
    features = prefetched(source.cache, tokens, len(batches[0]), layers=source.layers)
    loader = Loader(dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=workers)
    for batch, teacher in zip(loader, features, strict=True):
        yield replace(batch, teachers=(teacher,), to_teachers=(None,))


def _step_seconds(module: StudentModule, batches: Iterator[Batch]) -> list[float]:
    """Of all steps but the first, in which workers start."""
    ends = []
    for batch in batches:
        module.zero_grad()
        torch.stack(list(module.loss_terms(batch).values())).sum().backward()
        ends.append(time.perf_counter())
    return [after - before for before, after in pairwise(ends)]
