"""A training step without a teacher, from the store and with the live teacher: time, memory, largest batch, waits."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.names import CARDS_GIB, KINDS, PRECISIONS
from benchmarks.gpu.part import Figures, Job, timed
from benchmarks.gpu.world import PillarTeacher, make_dataset, of_size
from benchmarks.memory import reset_peak
from cache.dumping.prepared import PreparedFrames
from student.data.batch import Batch
from student.distill import TeacherMaps
from student.training.memory import peak_bytes
from student.training.module import StudentModule

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class LiveMaps(TeacherMaps):
    """A live teacher's maps, and the identity where a store's view has its matrix."""

    view_matrix: Tensor


class Training:
    """A student, its optimiser, and a few samples on the CPU that make batches of any size.

    Its steps are Lightning's: autocast, loss, check for NaN, gradients, clipping, AdamW.
    """

    def __init__(self, job: Job, kind: str, precision: str) -> None:
        self.job, self.kind, self.half = job, kind, precision != "32-true"
        config = job.sizes.student(f"training.precision={precision}")
        config = config.model_copy(update={"distill": None}) if kind == "no teacher" else config
        dataset = make_dataset(job.folder, job.sizes, config, job.device)
        self.samples = dataset.collate([dataset[0], dataset[1]])
        torch.manual_seed(0)
        specs = [source.cache.spec for source in dataset.sources]
        self.module = StudentModule(config, specs).to(job.device).train()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=config.training.learning_rate)
        self.clip = config.training.gradient_clip
        self.teacher = PillarTeacher(job.sizes, job.device) if kind == "live teacher" else None
        if self.teacher is not None:
            prepared = PreparedFrames.of(dataset.frames, self.teacher)
            self.points = [prepared[index].views[0] for index in (0, 1)]

    def batch(self, samples: int) -> Batch:
        """On the device; with a live teacher, without the store's maps."""
        batch = of_size(self.samples, samples)
        if self.teacher is not None:
            batch = replace(batch, teachers=(), to_teachers=(None,))
        return batch.to(self.job.device)

    def step(self, batch: Batch) -> None:
        """One step of the optimiser."""
        if self.teacher is not None:
            batch = replace(batch, teachers=(self._look(len(batch)),))  # type: ignore[arg-type]
        with torch.autocast(self.job.device, torch.bfloat16, enabled=self.half):
            loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def _look(self, samples: int) -> LiveMaps:
        assert self.teacher is not None
        output = self.teacher([self.points[index % 2] for index in range(samples)])
        return LiveMaps(
            features=output.layers,
            heatmap=output.probability,
            canvas_mask=output.canvas_mask,
            view_matrix=torch.eye(4, device=self.job.device).expand(samples, 4, 4),
        )


def measure(job: Job) -> Figures:
    """Time and memory of the recipe's batch in both precisions."""
    for precision in PRECISIONS:
        for kind in KINDS:
            training, name = Training(job, kind, precision), f"{kind}, {precision}"
            batch = training.batch(job.sizes.batch)
            training.step(batch)  # makes the optimiser's moments
            before = reset_peak(job.device)
            rounds = 2 if job.sizes.small else 10
            yield from timed(job, lambda: training.step(batch), rounds, warm_up=1).figures(name)  # noqa: B023
            yield f"{name} GB", peak_bytes(job.device) / 1e9
            yield f"{name} GB between steps", before / 1e9
            if kind == "store":
                yield f"{name}, waits for the device", waits(job, lambda: training.step(batch))  # noqa: B023
            del training, batch
            _free(job)


def waits(job: Job, work: Callable[[], object]) -> list[str] | None:
    """Where CUDA saw Python wait; None without a GPU."""
    if not job.on_gpu:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing CUDA operation" in str(one.message)]


def measure_largest(job: Job) -> Figures:
    """The largest batch in 8, 12 and 24 GiB of GPU memory: each size is tried, under a limit for the process."""
    taken, total = _context(job)
    yield "GB that CUDA takes beside the tensors", taken / 1e9
    for precision in PRECISIONS:
        for kind in KINDS:
            training = Training(job, kind, precision)
            for card in CARDS_GIB:
                name = f"{kind}, {precision}, largest batch in {card} GiB"
                if total is None:  # a rehearsal: nothing can be limited, so that few samples have to do
                    yield name, largest_batch(partial(_fits, training), first=1, most=2)
                elif card * GIB <= total:
                    with _limited((card * GIB - taken) / total):
                        yield name, largest_batch(partial(_fits, training), first=4, most=64)
            del training
            _free(job)


def _context(job: Job) -> tuple[int, int | None]:
    """Bytes of the device that this process takes beside its tensors, and all that the device has."""
    if not job.on_gpu:
        return 0, None
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved(), total


def _fits(training: Training, samples: int) -> bool:
    """Whether two steps pass; the second has the optimiser's moments from its start."""
    try:
        batch = training.batch(samples)
        for _ in range(2):
            training.step(batch)
        training.job.synchronise()
    except torch.OutOfMemoryError:
        training.optimizer.zero_grad(set_to_none=True)
        return False
    finally:
        _free(training.job)
    return True


def largest_batch(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The largest number that fits, at most `most`; 0 if not even 1 does."""
    low, high = 0, first
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@contextmanager
def _limited(fraction: float) -> Iterator[None]:
    """Of the device's memory, for this process's tensors."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _free(job: Job) -> None:
    if job.on_gpu:
        torch.cuda.empty_cache()
