"""Copies of stores, whole or of some layers, between local folders and URLs.

A copy is begun, recorded shard by shard and sealed as a dump is: its root says at first that it is not complete, a
shard's record comes after the shard's files have arrived with the bytes of their checksums, and the seal comes last. A
copy that was stopped goes on after the shards that have their records.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cache.errors import MismatchError, NotCachedError
from cache.store.documents import (
    ShardFile,
    ShardRecord,
    StoreAttributes,
    node_files,
    parse_attributes,
    parse_record,
    read_signed,
    sign,
)
from cache.store.layout import ROOT, SampleArray, record_key, sample_arrays
from cache.store.places import Source, Target, read_root, source_at, target_at
from cache.store.preconditions import require_free_folder
from cache.store.remote import local_path
from cache.store.shard_reader import require_committed
from cache.store.whole_files import FRAMES_RECORD, frame_file_checks, require_frames_record, small_file_checks


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """Result of a copy."""

    source: str
    target: str
    layers: tuple[str, ...]
    samples: int
    shards: int
    copied: int
    """Shards of this run; the others were there already."""
    bytes: int
    """Of the shards of this run."""
    seconds: float

    def __str__(self) -> str:
        rate = f"{self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s"
        there = self.shards - self.copied
        already = f"; {there} of {self.shards} shards were there already" if there else ""
        return f"{self.target}: {self.samples} samples, layers {', '.join(self.layers)}; {rate}{already}"


def copy_store(
    source: str | Path,
    target: str | Path,
    layers: Sequence[str] | None = None,
    workers: int = 8,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> CopyReport:
    """Copy a sealed store, or some layers of it, and seal the copy; all bytes are compared with their checksums.

    Heatmap, canvas mask, the head's maps and weights, depth and frames are copied as well.

    Args:
        source: a folder, or a URL that fsspec reads.
        target: a folder, or a URL that fsspec writes; what an earlier copy brought there stays.
        layers: all by default.
        workers: shards that are copied at a time.
        progress: called with (done, total) shards.

    Raises:
        UnsealedError: the source is not complete.
        NotCachedError: it lacks a layer.
        MismatchError: another store is at the target.
        CorruptStoreError: the source is damaged, or bytes do not arrive as they were sent.
        StoreError: something else is at the target, another process writes to it, or a server fails.
        ConfigError: fsspec cannot read or write the URL.
    """
    began = time.monotonic()
    plan = CopyPlan.of(source_at(source), str(source), layers)
    _require_place(target, plan)
    with target_at(target, plan.shards) as place:
        plan.begin(place, str(target))
        done = list(_copied(plan, place, workers, progress))
        place.write(ROOT, plan.root(sealed=True))
    return CopyReport(
        source=str(source),
        target=str(target),
        layers=tuple(layer.name for layer in plan.attributes.spec.layers),
        samples=plan.attributes.spec.data.samples,
        shards=len(plan.shards),
        copied=sum(size > 0 for size in done),
        bytes=sum(done),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, kw_only=True)
class CopyPlan:
    """What is copied.

    name: the source's, for errors.
    original, attributes: those of the source and of the copy; the same where all layers are copied.
    document: the source's root.
    """

    source: Source
    name: str
    original: StoreAttributes
    attributes: StoreAttributes
    document: dict[str, Any]

    @classmethod
    def of(cls, source: Source, name: str, layers: Sequence[str] | None) -> "CopyPlan":
        """Read the source's root and choose the layers; raises as `copy_store` does."""
        where = f"{name}/{ROOT}"
        data = read_root(source, name)
        original = parse_attributes(data, where)
        attributes = original if layers is None else _of_layers(original, layers, name)
        return cls(
            source=source, name=name, original=original, attributes=attributes, document=read_signed(data, where)
        )

    @property
    def shards(self) -> range:
        """All of them."""
        return self.attributes.layout.shards(self.attributes.spec.data.samples)

    def root(self, sealed: bool) -> bytes:
        """The root document of the copy."""
        document = copy.deepcopy(self.document)
        if self.attributes is not self.original:
            changed = self.attributes.model_dump(mode="json", include={"spec", "fingerprint", "codec_report"})
            document["attributes"] |= changed
            nodes = document["consolidated_metadata"]["metadata"]
            for name in sample_arrays(self.original.spec).keys() - sample_arrays(self.attributes.spec).keys():
                del nodes[name]
        if not sealed:
            document["attributes"] |= {"sealed": False, "codec_report": {}}
        return sign(document)

    def begin(self, target: Target, name: str) -> None:
        """Write the small files, and the root last, unless the copy was begun before.

        Raises:
            MismatchError: the target is another store.
        """
        unsealed, there = self.root(sealed=False), target.find(ROOT)
        if there is None:
            for key, data in self.small_files():
                target.write(key, data)
            target.write(ROOT, unsealed)
        elif there not in (unsealed, self.root(sealed=True)):
            parse_attributes(there, f"{name}/{ROOT}").spec.require(self.attributes.spec, name)
            raise MismatchError(
                "another store is where the copy is to be",
                where=name,
                expected=f"nothing, or what an earlier copy of {self.name} left",
                cure="Copy to another place",
            )

    def small_files(self) -> Iterator[tuple[str, bytes]]:
        """All files but the root, the shards and their records, by key."""
        nodes = node_files(read_signed(self.root(sealed=True), self.name), self.attributes.spec)
        yield from nodes.items()
        for key, check in small_file_checks(self.original, self.name).items():
            yield key, self.source.read(key, check)
        yield from frame_files(self.source, self.original, self.name)

    def copy_shard(self, target: Target, shard: int) -> int:
        """Copy a shard unless its record is there; returns its bytes."""
        key = record_key(shard)
        where = f"{self.name}/{key}"
        parse = partial(parse_record, shard=shard, attributes=self.original, where=where)
        data = self.source.read(key, parse)
        stored, document = parse(data), read_signed(data, where)
        if self.attributes is not self.original:
            document = _record_of_layers(stored, self.attributes)
        if target.find(key) == sign(document):
            return 0
        arrays = sample_arrays(self.attributes.spec)
        for name, array in arrays.items():
            self._copy_file(target, stored.files[name], array, shard)
        target.write(key, sign(document))
        return sum(stored.files[name].bytes for name in arrays)

    def _copy_file(self, target: Target, file: ShardFile, array: SampleArray, shard: int) -> None:
        key, size = array.key(shard), self.attributes.layout.samples_per_shard
        check = partial(
            require_committed, recorded=file, array=array, samples_per_shard=size, where=f"{self.name}/{key}"
        )
        target.receive(key, lambda descriptor: self.source.fetch(key, file.bytes, descriptor, check), check)


def frame_files(source: Source, attributes: StoreAttributes, store: str) -> Iterator[tuple[str, bytes]]:
    """The files of the frames that a store carries, by key, their record last; none where it carries none.

    Raises:
        CorruptStoreError: one is missing, damaged or another store's.
    """
    bound = attributes.frames_sha256 is not None
    record = (source.read if bound else source.find)(FRAMES_RECORD, partial(require_frames_record, attributes, store))
    if record is not None:
        for key, check in frame_file_checks(record, store).items():
            yield key, source.read(key, check)
        yield FRAMES_RECORD, record


def _require_place(target: str | Path, plan: CopyPlan) -> None:
    """Raise StoreError where something else is in the place of a local copy."""
    local = local_path(target)
    if local is not None:
        require_free_folder(local, lambda: [key for key, _ in plan.small_files()])


def _copied(plan: CopyPlan, target: Target, workers: int, progress: Callable[[int, int], None]) -> Iterator[int]:
    """Copy all shards; gives the bytes of each as it arrives."""
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        waiting = [pool.submit(plan.copy_shard, target, shard) for shard in plan.shards]
        try:
            for done, shard in enumerate(as_completed(waiting), start=1):
                yield shard.result()
                progress(done, len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _of_layers(attributes: StoreAttributes, layers: Sequence[str], name: str) -> StoreAttributes:
    """The attributes of a store that holds these layers alone."""
    known = [layer.name for layer in attributes.spec.layers]
    missing = [layer for layer in layers if layer not in known]
    if missing or not layers:
        raise NotCachedError(
            "the store does not hold this layer",
            where=name,
            got=", ".join(missing) or "none",
            expected=" or ".join(known),
            cure="Choose another layer",
        )
    if len(set(layers)) == len(known):
        return attributes
    chosen = tuple(layer for layer in attributes.spec.layers if layer.name in layers)
    spec = attributes.spec.model_copy(update={"layers": chosen})
    report = {layer: lost for layer, lost in attributes.codec_report.items() if layer in layers}
    return attributes.model_copy(update={"spec": spec, "fingerprint": spec.fingerprint, "codec_report": report})


def _record_of_layers(stored: ShardRecord, attributes: StoreAttributes) -> dict[str, Any]:
    """The record of a shard of a store that holds some of the layers."""
    arrays, layers = sample_arrays(attributes.spec), {layer.name for layer in attributes.spec.layers}
    changes = {
        "fingerprint": None if stored.fingerprint is None else attributes.fingerprint,
        "files": {name: file for name, file in stored.files.items() if name in arrays},
        "distortion": {name: lost for name, lost in stored.distortion.items() if name in layers},
    }
    return stored.model_copy(update=changes).model_dump(mode="json", exclude_none=True)
