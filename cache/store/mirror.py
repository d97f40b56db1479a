"""Mirror: a sealed store at a URL, read through a local folder that holds the shards in use.

The root is read from the URL each time, and names the folder: a store that was replaced has another. Nothing in the
folder is trusted but by its checksum, whoever left it there.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from cache.errors import ConfigError, CorruptStoreError, OfflineDistillError
from cache.store.atomic import store_errors, write_durably
from cache.store.bounded_folder import BoundedFolder
from cache.store.documents import ShardFile, parse_attributes, parse_record
from cache.store.files import read_file
from cache.store.layout import ROOT, SampleArray, record_key
from cache.store.places import read_root
from cache.store.remote import RemoteFolder
from cache.store.shard_reader import Chunk, ShardReader, require_committed
from cache.store.whole_files import (
    FRAMES_RECORD,
    Check,
    frame_file_checks,
    most_bytes,
    require_frames_record,
    small_file_checks,
)

AHEAD_THREADS = 4


class Mirror:
    """The files of a store at a URL, in a folder below `local_cache`; small files are fetched at once.

    Args:
        limit_gb: of all stores in `local_cache` together; None for no limit.

    Raises:
        UnsealedError: the store is not complete.
        ConfigError: there is no local cache, its limit is no number above 0, or fsspec cannot read the URL.
        CorruptStoreError: the store is damaged.
        StoreError: a server fails, or the folder cannot be written.

    Attributes:
        path: the store's folder, laid out as the store.
    """

    def __init__(self, url: str, local_cache: str | Path | None, limit_gb: float | None = None) -> None:
        _require_folder(url, local_cache, limit_gb)
        self.url, self._remote = url, RemoteFolder(url=url)
        root = read_root(self._remote, url)
        self.attributes = parse_attributes(root, f"{url}/{ROOT}")
        self._name = hashlib.sha256(root).hexdigest()[:32]
        limit = None if limit_gb is None else int(limit_gb * 1e9)
        self._folder = BoundedFolder(path=Path(str(local_cache)), limit=limit)
        self.path = self._folder.path / self._name
        with store_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._fetch_small_files(root)

    def open(self, array: SampleArray, shard: int, recorded: ShardFile, wait: bool = True) -> int | None:
        """The descriptor of a shard's file, fetched unless it is there; None as in `BoundedFolder.open`."""
        key = array.key(shard)
        size, samples = recorded.bytes, self.attributes.layout.samples_per_shard
        where = f"{self.url}/{key}"
        check = partial(require_committed, recorded=recorded, array=array, samples_per_shard=samples, where=where)
        with store_errors(self.path):
            return self._folder.open(
                f"{self._name}/{key}", size, lambda file: self._remote.fetch(key, size, file, check), wait
            )

    def remove(self, key: str) -> None:
        """Remove a file, to be fetched again."""
        self._folder.remove(f"{self._name}/{key}")

    def keep(self, key: str, check: Check) -> bytes:
        """The bytes of a small file, fetched unless the local one passes its check."""
        with suppress(CorruptStoreError):
            data = read_file(self.path, key, most_bytes(key))
            check(data)
            return data
        data = self._remote.read(key, check)
        with store_errors(self.path), self._folder.lock():  # threads of a process would write to the same partial file
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / key, data)
        return data

    def _fetch_small_files(self, root: bytes) -> None:
        write_durably(self.path / ROOT, root)
        for key, check in small_file_checks(self.attributes, self.url).items():
            self.keep(key, check)
        bound, check = self.attributes.frames_sha256, partial(require_frames_record, self.attributes, self.url)
        record = (self._remote.find if bound is None else self._remote.read)(FRAMES_RECORD, check)
        if record is not None:
            for key, check_column in frame_file_checks(record, self.url).items():
                self.keep(key, check_column)
            write_durably(self.path / FRAMES_RECORD, record)


class MirroredShards(ShardReader):
    """Reader of a mirror's chunks. A shard is fetched when it is first read, and where its local file is damaged."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror.path, mirror.attributes)
        self._mirror = mirror
        self._ahead = _Ahead(self._fetch)

    def read(self, array: str, chunk: Chunk, out: np.ndarray) -> None:
        try:
            super().read(array, chunk, out)
        except CorruptStoreError:
            self._mirror.remove(self.arrays[array].key(chunk.shard))
            super().read(array, chunk, out)

    def file(self, array: str, shard: int) -> ShardFile:
        if shard not in self._files:
            key = record_key(shard)
            parse = partial(parse_record, shard=shard, attributes=self._attributes, where=f"{self._mirror.url}/{key}")
            self._files[shard] = parse(self._mirror.keep(key, parse)).files
        return self._files[shard][array]

    def fetch_ahead(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Fetch arrays of shards in the background, in their order, unless others do."""
        self._ahead.ask(wanted)

    def _fetch(self, array: str, shard: int) -> None:
        file = self._mirror.open(self.arrays[array], shard, self.file(array, shard), wait=False)
        if file is not None:
            os.close(file)

    def _open(self, array: str, shard: int) -> int:
        file = self._mirror.open(self.arrays[array], shard, self.file(array, shard))
        assert file is not None
        return file


class _Ahead:
    """Threads of a process that fetch what it asks for, in that order; they end with the process.

    Args:
        fetch: fetches an array of a shard.
    """

    def __init__(self, fetch: Callable[[str, int], None]) -> None:
        self._fetch, self._process = fetch, -1
        self._waiting: set[tuple[str, int]] = set()
        self._queue: SimpleQueue[tuple[str, int]] = SimpleQueue()

    def ask(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Ask for arrays of shards, unless they are being waited for."""
        if self._process != os.getpid():  # a forked process has none of its parent's threads
            self._process, self._waiting, self._queue = os.getpid(), set(), SimpleQueue()
            for _ in range(AHEAD_THREADS):
                threading.Thread(target=self._work, args=(self._queue,), name="fetch ahead", daemon=True).start()
        for each in wanted:
            if each not in self._waiting:
                self._waiting.add(each)
                self._queue.put(each)

    def _work(self, queue: "SimpleQueue[tuple[str, int]]") -> None:
        while True:
            each = queue.get()
            with suppress(OfflineDistillError):  # the read that needs the shard meets the same error, and raises it
                self._fetch(*each)
            self._waiting.discard(each)


def _require_folder(url: str, local_cache: str | Path | None, limit_gb: float | None) -> None:
    if local_cache is None:
        raise ConfigError(
            "a store at a URL is read through a local folder",
            where=url,
            got="none",
            cure="Give local_cache (data.local_cache of a training), and limit_gb; or copy the store with `cli copy`",
        )
    if limit_gb is not None and not limit_gb > 0:
        raise ConfigError(
            "the limit of a local cache is no size", where="limit_gb", got=limit_gb, expected="more than 0, or none"
        )
