"""ShardWriter: files written beside their final names, made durable, renamed, then recorded in the manifest."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from cache.errors import StoreError
from cache.store.atomic import store_errors
from cache.store.distortion import Distortion, require_budget
from cache.store.documents import ShardFile, ShardRecord, StoreAttributes, sign
from cache.store.folder import StoreFolder, partial_key
from cache.store.format import CHECKSUM_BYTES, checksum_of, pack_chunk, pack_index
from cache.store.layout import SampleArray, StoredSample, record_key, sample_arrays


class ShardWriter:
    """Writes one shard sample by sample; memory holds no more than the samples being added.

    Args:
        folder: The store.
        fence: Raises where the store is no longer the one that was opened; called before files get their names.
        samples: Number of samples of the complete shard.
        pool: Threads that compress.
    """

    def __init__(
        self,
        folder: StoreFolder,
        fence: Callable[[], object],
        attributes: StoreAttributes,
        shard: int,
        samples: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._folder, self._fence, self._attributes, self._pool = folder, fence, attributes, pool
        self._shard, self._samples = shard, samples
        self._arrays = sample_arrays(attributes.spec)
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, list[int]] = {name: [] for name in self._arrays}
        self._checksums: dict[str, list[int]] = {name: [] for name in self._arrays}
        self._distortion = {layer.name: Distortion() for layer in attributes.spec.layers}
        try:
            for name, array in self._arrays.items():
                self._files[name] = folder.create(partial_key(array.key(shard)))
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
        level = self._attributes.layout.zstd_level
        with store_errors(self._folder.path):
            packed = list(self._pool.map(lambda item: pack_chunk(item[1], level), work))
            for (name, _), chunk in zip(work, packed, strict=True):
                self._files[name].write(chunk)
                self._sizes[name].append(len(chunk))
                self._checksums[name].append(int.from_bytes(chunk[-CHECKSUM_BYTES:], "little"))
        for sample in samples:
            for layer, distortion in sample.distortion.items():
                self._distortion[layer] += distortion
        return sum(map(len, packed))

    def commit(self) -> None:
        """Make the shard durable, then record it in the manifest.

        Raises:
            ConfigError: a layer's loss exceeds its budget.
            StoreError: the files cannot be written, or the store was removed or replaced meanwhile.
        """
        for layer in self._attributes.spec.layers:
            require_budget(self._distortion[layer.name], layer.codec, f"layer {layer.name}, shard {self._shard}")
        with store_errors(self._folder.path):
            files = {name: self._finish(array) for name, array in self._arrays.items()}
            self._fence()
            for array in self._arrays.values():  # at once: a process may be stopped between the check and these
                key = array.key(self._shard)
                self._folder.rename(partial_key(key), key)
            for name in files:
                self._folder.fsync(name)
            self._fence()
            self._folder.write_durably(record_key(self._shard), sign(self._record(files)))

    def discard(self) -> None:
        """Remove the files of a shard that was not committed."""
        for name, file in self._files.items():
            with suppress(OSError):  # a full disk fails the flush; these bytes are not needed
                file.close()
            with suppress(FileNotFoundError):  # the store itself was removed
                self._folder.unlink(partial_key(self._arrays[name].key(self._shard)))

    def _record(self, files: dict[str, ShardFile]) -> dict[str, Any]:
        bound = self._attributes.format_version > 1
        record = ShardRecord(
            shard=self._shard,
            fingerprint=self._attributes.fingerprint if bound else None,
            files=files,
            distortion=self._distortion,
        )
        return record.model_dump(mode="json", exclude_none=True)

    def _finish(self, array: SampleArray) -> ShardFile:
        """Append the index to a file and make it durable."""
        sizes = self._sizes[array.name]
        if len(sizes) != self._samples * array.chunks:
            raise StoreError(
                "a shard is committed before all its samples were added",
                where=f"{self._folder.path}, {array.name}, shard {self._shard}",
                got=f"{len(sizes)} chunks",
            )
        index = pack_index(sizes, self._attributes.layout.samples_per_shard * array.chunks)
        with self._files[array.name] as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        return ShardFile(
            bytes=sum(sizes) + len(index),
            index_crc32c=checksum_of(np.frombuffer(index, np.uint8)),
            chunks_crc32c=self._chunk_checksums(array.name),
        )

    def _chunk_checksums(self, name: str) -> str | None:
        if self._attributes.format_version == 1:
            return None
        return "".join(f"{checksum:08x}" for checksum in self._checksums[name])


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
