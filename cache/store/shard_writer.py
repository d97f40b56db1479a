"""ShardWriter: files written beside their final names, made durable, renamed, then recorded in the manifest."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cache.errors import StoreError
from cache.spec import CacheSpec
from cache.store.atomic import fsync_folder, store_errors, write_durably
from cache.store.distortion import Distortion, require_budget
from cache.store.documents import ShardFile, ShardRecord, sign
from cache.store.format import checksum_of, pack_chunk, pack_index
from cache.store.layout import Layout, SampleArray, StoredSample, record_key, sample_arrays


class ShardWriter:
    """Writes one shard sample by sample; memory holds no more than the samples being added.

    Args:
        path: The store.
        samples: Number of samples of the complete shard.
        pool: Threads that compress.
    """

    def __init__(
        self, path: Path, spec: CacheSpec, layout: Layout, shard: int, samples: int, pool: ThreadPoolExecutor
    ) -> None:
        self._path, self._spec, self._layout, self._pool = path, spec, layout, pool
        self._shard, self._samples = shard, samples
        self._arrays = sample_arrays(spec)
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, list[int]] = {name: [] for name in self._arrays}
        self._distortion = {layer.name: Distortion() for layer in self._spec.layers}
        try:
            for name, array in self._arrays.items():
                self._files[name] = self._partial(array).open("wb")
        except BaseException:
            self.discard()
            raise

    def add(self, samples: Sequence[StoredSample]) -> int:
        """Compress and append samples, in the order of `StoreWriter.positions`; returns their bytes."""
        work = [
            (name, chunk)
            for sample in samples
            for name, array in self._arrays.items()
            for chunk in _chunks(sample, array)
        ]
        level = self._layout.zstd_level
        with store_errors(self._path):
            packed = list(self._pool.map(lambda item: pack_chunk(item[1], level), work))
            for (name, _), chunk in zip(work, packed, strict=True):
                self._files[name].write(chunk)
                self._sizes[name].append(len(chunk))
        for sample in samples:
            for layer, distortion in sample.distortion.items():
                self._distortion[layer] += distortion
        return sum(map(len, packed))

    def commit(self) -> None:
        """Make the shard durable, then record it in the manifest.

        Raises:
            ConfigError: a layer's loss exceeds its budget.
            StoreError: the files cannot be written.
        """
        for layer in self._spec.layers:
            require_budget(self._distortion[layer.name], layer.codec, f"layer {layer.name}, shard {self._shard}")
        with store_errors(self._path):
            files = {name: self._finish(array) for name, array in self._arrays.items()}
            for name in files:
                fsync_folder(self._path / name)
            record = ShardRecord(shard=self._shard, files=files, distortion=self._distortion)
            write_durably(self._path / record_key(self._shard), sign(record.model_dump(mode="json")))

    def discard(self) -> None:
        """Remove the files of a shard that was not committed."""
        for name, file in self._files.items():
            with suppress(OSError):  # a full disk fails the flush; these bytes are not needed
                file.close()
            self._partial(self._arrays[name]).unlink(missing_ok=True)

    def _partial(self, array: SampleArray) -> Path:
        return self._path / f"{array.key(self._shard)}.{os.getpid()}.partial"

    def _finish(self, array: SampleArray) -> ShardFile:
        """Append the index to a file, make it durable and give it its final name."""
        sizes = self._sizes[array.name]
        if len(sizes) != self._samples * array.chunks:
            raise StoreError(
                "a shard is committed before all its samples were added",
                where=f"{self._path}, {array.name}, shard {self._shard}",
                got=f"{len(sizes)} chunks",
            )
        index = pack_index(sizes, self._layout.samples_per_shard * array.chunks)
        with self._files[array.name] as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        self._partial(array).rename(self._path / array.key(self._shard))
        checksum = checksum_of(np.frombuffer(index, np.uint8))
        return ShardFile(bytes=sum(sizes) + len(index), index_crc32c=checksum)


def _chunks(sample: StoredSample, array: SampleArray) -> np.ndarray:
    """The chunks of a sample, along the first axis."""
    values = sample.arrays[array.name]
    if values.shape != array.sample_shape or values.dtype != array.dtype:
        raise StoreError(
            "a sample does not fit its array",
            where=array.name,
            got=f"{values.dtype} {values.shape}",
            expected=f"{array.dtype} {array.sample_shape}",
        )
    return values.reshape(array.chunks, *array.shape)
