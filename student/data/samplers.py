"""Samplers: the order of a training's samples, and the seed of each one's augmentation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from cache.spec import CLASSES


@dataclass(frozen=True, kw_only=True)
class SampleDraw:
    """One position of a training's sequence.

    index: of the frame.
    seed: of its augmentation; None for no augmentation.
    ahead: a frame of each shard that is to be fetched now, to be there when it is needed.
    """

    index: int
    seed: tuple[int, ...] | None = None
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Every frame once an epoch."""

    frames: int

    def __len__(self) -> int:
        return self.frames

    def __call__(self, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        return rng.permutation(self.frames)


@dataclass(frozen=True, kw_only=True)
class ClassBalanced:
    """CBGS (Zhu et al. 2019, section 3.2): as many draws, with replacement, from the frames of each class.

    All classes together get as many draws as there are pairs of a frame and a class in it, as in mmdet3d's
    CBGSDataset; unlike there, each epoch draws anew, and classes without a frame are left out.
    """

    frames_of_class: tuple[Int[np.ndarray, "_"], ...]

    @classmethod
    def of(cls, counts: Int[np.ndarray, "N classes"], classes: Sequence[str]) -> "ClassBalanced":
        """From the boxes of each class in each frame (`Frames.label_counts`), for the classes of the detector."""
        present = counts[:, [CLASSES.index(name) for name in classes]] > 0
        found = [np.flatnonzero(column) for column in present.T]
        return cls(frames_of_class=tuple(indices for indices in found if len(indices)))

    @property
    def draws_per_class(self) -> int:
        """Frames that each class contributes to an epoch."""
        pairs = sum(len(indices) for indices in self.frames_of_class)
        return pairs // max(1, len(self.frames_of_class))

    def __len__(self) -> int:
        return self.draws_per_class * len(self.frames_of_class)

    def __call__(self, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        draws = [rng.choice(indices, self.draws_per_class) for indices in self.frames_of_class]
        return rng.permutation(np.concatenate(draws))


@dataclass(frozen=True, kw_only=True)
class ByShards:
    """The frames of another order by the shards of a store: all those of one window of shards, then of the next.

    The shards are in random order, and the frames of a window are shuffled among each other: an epoch needs each shard
    during one window only.

    shard_of: each frame's.
    window: number of shards.
    """

    order: Shuffled | ClassBalanced
    shard_of: Int[np.ndarray, "frames"]
    window: int

    def __len__(self) -> int:
        return len(self.order)

    def __call__(self, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        frames = self.order(rng)
        shards, row = np.unique(self.shard_of[frames], return_inverse=True)
        window = rng.permutation(len(shards))[row] // self.window
        return frames[np.argsort(window, kind="stable")]

    def ahead(self, frames: Int[np.ndarray, "n"]) -> dict[int, tuple[int, ...]]:
        """The frames whose shards are to be fetched, by position in a sequence: a window before they are needed."""
        _, first = np.unique(self.shard_of[frames], return_index=True)
        first.sort()
        needed = frames[first].tolist()
        begin = {0: tuple(needed[: self.window])}
        later = zip(first.tolist(), needed[self.window :], strict=False)
        return begin | {at: (*begin.get(at, ()), frame) for at, frame in later}


Order = Shuffled | ClassBalanced | ByShards
"""Called with an epoch's generator, returns the indices of its len(order) frames."""


class SeededSampler(Sampler[SampleDraw]):
    """The same global sequence of samples and draws for any number of workers and ranks.

    Position p of epoch e is frame order[p] and carries the seed (seed, e, p); rank r of R takes the positions
    r, r + R, ... An epoch is as many whole steps of the optimiser as the order's frames fill.

    Args:
        order: the frames of an epoch.
        seed: of order and draws.
        samples_per_step: of all ranks together; a multiple of `ranks`.
    """

    def __init__(self, order: Order, seed: int, samples_per_step: int = 1, rank: int = 0, ranks: int = 1) -> None:
        self.order, self.seed, self.rank, self.ranks = order, seed, rank, ranks
        self.samples_per_step = samples_per_step
        self.epoch, self.start = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser."""
        return len(self.order) // self.samples_per_step

    def go_to(self, step: int) -> None:
        """Begin at a step counted from the training's start, which may be within an epoch."""
        self.epoch, steps = divmod(step, self.steps_per_epoch)
        self.start = steps * self.samples_per_step

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; a new epoch begins at its first sample."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank: Lightning subtracts what a resumed epoch has done."""
        return self.steps_per_epoch * self.samples_per_step // self.ranks

    def __iter__(self) -> Iterator[SampleDraw]:
        order = self.order(np.random.default_rng((self.seed, self.epoch)))
        end = self.steps_per_epoch * self.samples_per_step
        ahead = self.order.ahead(order[self.start : end]) if isinstance(self.order, ByShards) else {}
        for row in range(0, end - self.start, self.ranks):  # of one sample for each rank; all fetch for all
            position = self.start + row + self.rank
            needed = tuple(frame for at in range(row, row + self.ranks) for frame in ahead.get(at, ()))
            yield SampleDraw(index=int(order[position]), seed=(self.seed, self.epoch, position), ahead=needed)
