"""Trainings of one student that take turns, each in its own process: alone, from a cache, beside a live teacher."""

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cache.dumping.prepared import PreparedFrames
from cache.nuscenes.frames import Frames
from cache.teacher.mmdet3d import load_teacher
from student.config.student import StudentConfig
from student.data.batch import Batch
from student.data.dataset import StudentDataset
from student.data.teacher_source import TeacherSource
from student.distill import TeacherMaps, inherit_head
from student.training.memory import peak_bytes
from student.training.module import StudentModule

KINDS = ("alone", "cached", "live")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trainings share. The teacher is the one that `store` was dumped from."""

    student: StudentConfig
    root: Path
    tokens: tuple[str, ...]
    store: Path
    teacher: str
    checkpoint: Path | None
    threads: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step's cost, loading included, and its loss.

    cached_loss: of a live training, what the cache would have said at the same weights and batch.
    """

    wall_s: float
    process_s: float
    loss: float
    cached_loss: float | None


@dataclass(kw_only=True)
class Record:
    """All steps of a training, and its process's peak memory."""

    steps: list[Step] = field(default_factory=list)
    peak_bytes: int = 0

    def walls(self) -> list[float]:
        """Seconds of each step."""
        return [step.wall_s for step in self.steps]

    def processes(self) -> list[float]:
        """The process's own seconds of each step, which others on the machine disturb less."""
        return [step.process_s for step in self.steps]


def take_turns(setting: Setting, steps: int, warm_up: int = 1) -> dict[str, Record]:
    """Run `steps` of every training, one after the other, step by step, after a few that are not counted."""
    records = {kind: Record() for kind in KINDS}
    with ExitStack() as running:
        trainings = {kind: running.enter_context(_process(kind, setting)) for kind in KINDS}
        for turn in range(warm_up + steps):
            for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]:
                trainings[kind].send(True)
                step = trainings[kind].recv()
                records[kind].steps += [step] if turn >= warm_up else []
        for kind, training in trainings.items():
            training.send(False)
            records[kind].peak_bytes = training.recv()
    return records


@contextmanager
def _process(kind: str, setting: Setting) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_compete, args=(kind, setting, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        process.join()
    finally:
        process.kill()


def _compete(kind: str, setting: Setting, turns: Connection) -> None:
    torch.set_num_threads(setting.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = _train(kind, setting, device)
    while turns.recv():
        turns.send(next(steps))
    turns.send(peak_bytes(device))


def _train(kind: str, setting: Setting, device: str) -> Iterator[Step]:
    """A training's steps, in float32, with no worker: all that a step costs lies within it."""
    config = setting.student.model_copy(update={"distill": None if kind == "alone" else setting.student.distill})
    frames = Frames(root=setting.root, version=config.data.version, splits=(config.data.train_split,))
    sources = _sources(kind, setting)
    torch.manual_seed(0)
    module = StudentModule(config, [source.cache.spec for source in sources]).to(device).train()
    if config.distill is not None and config.distill.inherit_head:
        inherit_head(module.detector.head, sources[0].cache.head_weights())
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.training.learning_rate)
    teacher = LiveTeacher(setting, frames, device) if kind == "live" else None
    detector = module.detector
    bare = StudentDataset(frames, config, detector.times, detector.supervise_depth)
    dataset = StudentDataset(frames, config, detector.times, detector.supervise_depth, sources)
    positions = [frames.tokens.index(token) for token in setting.tokens]
    for number, chosen in enumerate(_batches(positions, config.training.batch_size)):
        cached_loss = None
        if teacher is not None:
            with torch.no_grad():
                batch = dataset.collate([dataset[position] for position in chosen]).to(device)
                cached_loss = _loss(module, batch, number).item()
        wall, process = time.perf_counter(), time.process_time()
        batch = (bare if teacher else dataset).collate([dataset[position] for position in chosen]).to(device)
        if teacher is not None:
            # A live teacher's maps are floats, not a store's.
            batch = replace(batch, teachers=(teacher(batch),), to_teachers=(None,))  # type: ignore[arg-type]
        loss = _loss(module, batch, number)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.gradient_clip)
        optimizer.step()
        value = loss.item()
        spent = time.perf_counter() - wall, time.process_time() - process
        yield Step(wall_s=spent[0], process_s=spent[1], loss=value, cached_loss=cached_loss)


def _loss(module: StudentModule, batch: Batch, seed: int) -> Tensor:
    torch.manual_seed(seed)  # The depth net drops the same channels in every training.
    return torch.stack(list(module.loss_terms(batch).values())).sum()


def _sources(kind: str, setting: Setting) -> tuple[TeacherSource, ...]:
    if kind == "alone" or setting.student.distill is None:
        return ()
    return (TeacherSource.open(setting.store, setting.student),)


def _batches(positions: Sequence[int], size: int) -> Iterator[list[int]]:
    """The same for every training; a position alone means a frame without augmentation."""
    rng = random.Random(0)
    while True:
        order = rng.sample(list(positions), len(positions))
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


@dataclass(frozen=True, kw_only=True)
class LiveMaps(TeacherMaps):
    """A live teacher's maps, and the identity where a store's view would have its matrix."""

    view_matrix: Float[Tensor, "B 4 4"]


class LiveTeacher:
    """The public way: mmdet3d's detector within the step, its points read and voxelised for the same frames."""

    def __init__(self, setting: Setting, frames: Frames, device: str) -> None:
        self.teacher = load_teacher(setting.teacher, setting.checkpoint, device)
        self.prepared = PreparedFrames.of(frames, self.teacher)
        self.positions = {token: position for position, token in enumerate(frames.tokens)}

    def __call__(self, batch: Batch) -> LiveMaps:
        """What the teacher says of a batch's frames."""
        output = self.teacher([self.prepared[self.positions[token]].views[0] for token in batch.tokens])
        # Autograd refuses tensors of inference mode, in which the teacher runs; their copies it takes.
        return LiveMaps(
            features={name: layer.clone() for name, layer in output.layers.items()},
            heatmap=output.heatmap.clone(),
            canvas_mask=output.canvas_mask.clone(),
            view_matrix=torch.eye(4).expand(len(batch), 4, 4).to(batch.bev_matrix),
        )
