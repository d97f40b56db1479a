import errno
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch.utils.data import Dataset

from cache.errors import StoreError
from cache.nuscenes.loader import Loader
from student.training.checkpointing import DurableCheckpoints, ignore_stop_signals


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    DurableCheckpoints().save_checkpoint({"global_step": 1}, path)

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"the checkpoint cannot be written \(.*last.ckpt\); got No space left"):
        DurableCheckpoints().save_checkpoint({"global_step": 2}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 1}


class Signalled(Dataset[int]):
    """The worker that loads it gets the signals that a terminal or a scheduler sends to a whole group."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_workers_outlive_a_signal_to_the_group() -> None:
    loader = Loader(Signalled(), collate_fn=list, num_workers=2, worker_init_fn=ignore_stop_signals)
    assert list(loader) == [[0], [1], [2], [3]]
