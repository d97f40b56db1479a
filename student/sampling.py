"""The order of a training's samples, and the seed of each one's augmentation."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from student.dataset import Draw


class SeededSampler(Sampler[Draw]):
    """The same global sequence of samples and draws for any number of workers and ranks.

    Position p of epoch e is frame permutation[p] and carries the seed (seed, e, p); rank r of R takes the positions
    r, r + R, ... of the longest run that all ranks share alike.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.length, self.seed, self.rank, self.ranks = length, seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.ranks

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for position in range(self.rank, len(self) * self.ranks, self.ranks):
            yield Draw(index=int(order[position]), seed=(self.seed, self.epoch, position))
