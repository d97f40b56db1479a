"""Dump the small teacher in a process of its own: `-m tests.factories.small_dump POINTS STORE COUNT`."""

import os
import sys
from pathlib import Path

import torch

from cache.dumping.run import dump
from cache.store.partition import Part
from tests.factories.stores import SmallFrames, SmallTeacher, make_config

if __name__ == "__main__":
    torch.set_num_threads(1)
    points, store, count = sys.argv[1:]
    frames = SmallFrames(root=Path(points), count=int(count))
    print(dump(make_config(), frames, SmallTeacher(), Path(store), part=Part.of_rank(os.environ)))  # noqa: T201
