import errno
import os
import random
import signal
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch.utils.data import Dataset

from cache.errors import DataError, StoreError
from cache.nuscenes.loader import Loader
from student.models.checkpoint import DIGEST_KEY, checkpoint_bytes, require_digest
from student.training.checkpointing import LAST, DurableCheckpoints, ignore_stop_signals, remove_partial_checkpoints


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


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError):
        DurableCheckpoints().save_checkpoint({"global_step": 2}, tmp_path / LAST)
    assert list((tmp_path / LAST).parent.iterdir()) == []


def test_what_killed_saves_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    kept = {"last.ckpt", "movie.77.partial", "last.ckpt.old.partial", "last.ckpt.77.partial.bak"}
    for name in (*kept, "last.ckpt.77.partial", "best.ckpt.12345.partial"):
        (folder / name).write_bytes(b"half")
    remove_partial_checkpoints(tmp_path)
    assert {file.name for file in folder.iterdir()} == kept


def test_every_bit_of_a_checkpoint_is_under_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved = {"weights": torch.arange(1000.0), DIGEST_KEY: "sha256:", "step": 3}
    path.write_bytes(checkpoint_bytes(saved))
    assert require_digest(path)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(loaded["weights"], saved["weights"])
    data, chance = path.read_bytes(), random.Random(0)
    last = 8 * len(data)
    for bit in (*(chance.randrange(last) for _ in range(60)), *range(last - 8 * 71, last, 37)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert not require_digest(path)  # the mark itself is gone, and the checkpoint says that it has one
        except DataError as error:
            assert "does not match the digest" in str(error)
