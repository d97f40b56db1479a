from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from torch.utils.data import Dataset

from cache.nuscenes.loader import Loader
from cache.spec import CLASSES
from student.data.samplers import ByShards, ClassBalanced, Order, SampleDraw, SeededSampler, Shuffled

# Cars in every frame but two, one frame with a bus, two with barriers.
BOXES = [("car",)] * 5 + [("car", "car", "bus", "barrier"), ("barrier",), ()]
COUNTS = np.array([[boxes.count(name) for name in CLASSES] for boxes in BOXES])
BALANCED = ClassBalanced.of(COUNTS, ("car", "bus", "barrier", "bicycle"))


@dataclass(frozen=True)
class Draws(Dataset):
    """Gives each draw back, so that a loader shows what was asked of it."""

    length: int = field(default=13)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: SampleDraw) -> SampleDraw:
        return draw


def batches(
    order: Order, batch_size: int, workers: int, rank: int, ranks: int, step: int = 0
) -> list[list[SampleDraw]]:
    sampler = SeededSampler(order, 7, batch_size * ranks, rank, ranks)
    sampler.go_to(step)
    return list(Loader(Draws(), batch_size=batch_size, sampler=sampler, collate_fn=list, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_workers_and_ranks(workers: int, ranks: int) -> None:
    # Thirteen frames make three global batches of four, which the ranks share between them.
    parts = [batches(Shuffled(frames=13), 4 // ranks, workers, rank, ranks) for rank in range(ranks)]
    together = [{draw.seed: draw.index for batch in group for draw in batch} for group in zip(*parts, strict=True)]
    order = np.random.default_rng((7, 0)).permutation(13)
    assert together == [{(7, 0, p): order[p] for p in range(first, first + 4)} for first in (0, 4, 8)]


def test_epochs_differ_in_order_and_seed() -> None:
    sampler = SeededSampler(Shuffled(frames=20), seed=7)
    first = list(sampler)
    assert sorted(draw.index for draw in first) == list(range(20))
    sampler.set_epoch(1)
    second = list(sampler)
    assert [draw.index for draw in first] != [draw.index for draw in second]
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}


@pytest.mark.parametrize("order", [Shuffled(frames=13), BALANCED], ids=["shuffled", "balanced"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sequence_goes_on_where_it_stopped(order: Order, workers: int) -> None:
    per_epoch = len(order) // 2
    straight = batches(order, 2, 0, 0, 1)
    assert len(straight) == per_epoch
    assert batches(order, 2, workers, 0, 1, step=2) == straight[2:]
    assert batches(order, 2, workers, 0, 1, step=per_epoch + 1)[0][0].seed == (7, 1, 2)


def test_a_resumed_epoch_is_followed_by_a_whole_one() -> None:
    sampler = SeededSampler(Shuffled(frames=6), seed=7, samples_per_step=2)
    sampler.go_to(5)
    sampler.set_epoch(1)
    assert [draw.seed for draw in sampler] == [(7, 1, 4), (7, 1, 5)]
    sampler.set_epoch(2)
    assert len(list(sampler)) == len(sampler) == 6


def test_classes_are_met_equally_often() -> None:
    # Nine pairs of a frame and one of three classes: three draws for each class. No frame shows a bicycle.
    assert len(BALANCED) == 9
    drawn = BALANCED(np.random.default_rng(0))
    assert len(drawn) == 9
    counts = Counter(drawn.tolist())
    assert counts[5] >= 3  # the only bus
    assert counts[7] == 0  # an empty frame
    assert counts[5] + counts[6] >= 6  # buses and barriers


def test_class_balance_is_drawn_anew_in_each_epoch_and_seeded() -> None:
    draws = [BALANCED(np.random.default_rng((1, epoch))).tolist() for epoch in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


SHARD_OF = np.arange(40) // 4
BY_SHARDS = ByShards(order=Shuffled(frames=40), shard_of=SHARD_OF, window=3)


def test_an_epoch_by_shards_needs_each_shard_during_one_window() -> None:
    frames = BY_SHARDS(np.random.default_rng(0))
    assert sorted(frames) == list(range(40))
    windows = [set(SHARD_OF[frames[start : start + 12]].tolist()) for start in range(0, 40, 12)]
    assert [len(window) for window in windows] == [3, 3, 3, 1]
    assert not set.intersection(*windows)
    assert len(set(SHARD_OF[frames[:6]])) == 3  # shuffled within the window
    again, other = (BY_SHARDS(np.random.default_rng(seed)) for seed in (0, 1))
    assert again.tolist() == frames.tolist() != other.tolist()


def test_repeated_frames_stay_in_the_window_of_their_shard() -> None:
    frames = ByShards(order=BALANCED, shard_of=np.arange(8) // 2, window=1)(np.random.default_rng(0))
    assert Counter(frames.tolist()) == Counter(BALANCED(np.random.default_rng(0)).tolist())
    shards = (frames // 2).tolist()
    assert sum(one != other for one, other in pairwise(shards)) == len(set(shards)) - 1


def test_shards_are_asked_for_a_window_before_they_are_needed() -> None:
    frames = np.array([0, 4, 1, 8, 12, 9, 16])  # of shards 0, 1, 0, 2, 3, 2, 4
    order = ByShards(order=Shuffled(frames=40), shard_of=SHARD_OF, window=2)
    # Shards 0 and 1 at once, shard 2 with the first of 0, 3 with that of 1, 4 with that of 2.
    assert order.ahead(frames) == {0: (0, 4, 8), 1: (12,), 3: (16,)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_asks_for_all_shards_and_a_resumed_one_for_those_it_needs(ranks: int) -> None:
    per_rank = [batches(BY_SHARDS, 4 // ranks, 0, rank, ranks) for rank in range(ranks)]
    for parts in per_rank:
        asked = [SHARD_OF[frame] for batch in parts for draw in batch for frame in draw.ahead]
        assert sorted(asked) == list(range(10))
    resumed = [draw for batch in batches(BY_SHARDS, 4 // ranks, 0, 0, ranks, step=6) for draw in batch]
    straight = [draw for batch in per_rank[0][6:] for draw in batch]
    assert [(draw.index, draw.seed) for draw in resumed] == [(draw.index, draw.seed) for draw in straight]
    asked = [SHARD_OF[frame] for draw in resumed for frame in draw.ahead]
    assert sorted(asked) == sorted({SHARD_OF[frame] for frame in BY_SHARDS(np.random.default_rng((7, 0)))[24:]})
