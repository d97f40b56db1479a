"""The store's way to the device, and the dump's way to the store."""

import os
import shutil
import time
from collections.abc import Iterator
from itertools import islice

import torch

from benchmarks.gpu.part import Figures, Job, timed
from benchmarks.gpu.step import Training
from benchmarks.gpu.world import PillarTeacher, dump_config, make_dataset, make_frames, make_store
from cache.dumping.run import dump
from cache.dumping.setup import DumpSetup
from cache.nuscenes.loader import Loader
from cache.store.prefetch import prefetched
from cache.store.reader import TeacherCache
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.distill.feature_stats import as_float

PRECISION = "bf16-mixed"
"""Of the step that the loader must keep up with: the faster one."""


def measure_loading(job: Job) -> Figures:
    """Samples a second from the store alone and from the whole loader, and of a training that waits for it."""
    path = make_store(job.folder, job.sizes, job.device)
    files = [file for file in (path / "features").rglob("*") if file.is_file()]
    yield "MB of features a sample", sum(file.stat().st_size for file in files) / job.sizes.frames / 1e6
    for threads in (1, 4):
        yield f"store alone, {threads} threads, samples/s", _store_rate(job, TeacherCache(path), threads)
    training = Training(job, "store", PRECISION)
    batch = training.batch(job.sizes.batch)
    alone = timed(job, lambda: training.step(batch), 2 if job.sizes.small else 5)
    yield "step alone, samples/s", job.sizes.batch / alone.median_s
    dataset = make_dataset(job.folder, job.sizes, training.module.config, job.device)
    cores = len(os.sched_getaffinity(0))
    for workers in sorted({1, min(4, cores), min(16, cores)}):
        yield f"{workers} workers, samples/s", _loader_rate(job, dataset, workers, None)
        yield f"{workers} workers and the step, samples/s", _loader_rate(job, dataset, workers, training)


def _store_rate(job: Job, cache: TeacherCache, threads: int) -> float:
    """Read by threads into page-locked buffers, uploaded and decoded."""
    size, turns = job.sizes.batch, 2 if job.sizes.small else 12
    tokens = list(cache.tokens)
    batches = [[tokens[(start + index) % len(tokens)] for index in range(size)] for start in range(turns)]
    layers = [layer.name for layer in cache.spec.layers]

    def run() -> None:
        for read in prefetched(cache, batches, size, layers=layers, threads=threads, pin=job.on_gpu):
            for features in read.to(job.device, non_blocking=True).features.values():
                as_float(features)

    return size * turns / timed(job, run, rounds=1, warm_up=1).median_s


def _loader_rate(job: Job, dataset: StudentDataset, workers: int, training: Training | None) -> float:
    """Of the loader with images, depth and features, each batch uploaded and, with a training, trained on."""
    size, turns = job.sizes.batch, 3 if job.sizes.small else 10
    order = [[(start + index) % len(dataset) for index in range(size)] for start in range(turns + 2)]
    loader = Loader(dataset, batch_sampler=order, collate_fn=dataset.collate, num_workers=workers)
    batches: Iterator[Batch] = iter(loader)
    began = 0.0
    for number, batch in enumerate(islice(batches, turns + 2)):
        on_device = batch.to(job.device, non_blocking=True)
        if training is not None:
            training.step(on_device)
        if number == 1:  # workers have started, and queues are as full as they get
            job.synchronise()
            began = time.perf_counter()
    job.synchronise()
    return size * turns / (time.perf_counter() - began)


def measure_dump(job: Job) -> Figures:
    """The whole dump beside the teacher alone and beside teacher and encoder: loading and writing overlap with them."""
    frames = make_frames(job.folder / "frames", job.sizes, 12 if job.sizes.small else 256)
    teacher = PillarTeacher(job.sizes, job.device)
    workers = min(8, len(os.sched_getaffinity(0)))
    setup = DumpSetup.of(dump_config(job.sizes, workers), frames, teacher)
    prepared = [setup.prepared[index] for index in range(setup.config.batch_size)]

    @torch.no_grad()
    def look() -> None:
        teacher([frame.views[0] for frame in prepared])

    rounds = 2 if job.sizes.small else 10
    for name, work in {"teacher alone": look, "teacher and encoder": lambda: setup.encode(prepared)}.items():
        yield f"{name}, frames/s", len(prepared) / timed(job, work, rounds).median_s
    for turn in ("first", "second"):
        path = job.folder / f"dump-{turn}.zarr"
        report = dump(setup.config, frames, teacher, path)
        yield f"{turn} dump, frames/s", report.written / report.seconds
        yield f"{turn} dump, MB/s", report.bytes_written / report.seconds / 1e6
        shutil.rmtree(path)
