"""Dump the small teacher in a process of its own, which torchrun may start: small_dump.py POINTS STORE COUNT."""

import os
import sys
from pathlib import Path

import conftest as kit
import torch

from cache.dumping.run import dump
from cache.store.partition import Part

if __name__ == "__main__":
    torch.set_num_threads(1)
    points, store, count = sys.argv[1:]
    frames = kit.SmallFrames(root=Path(points), count=int(count))
    print(dump(kit.make_config(), frames, kit.SmallTeacher(), Path(store), part=Part.of_rank(os.environ)))  # noqa: T201
