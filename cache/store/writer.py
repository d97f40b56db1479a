"""Whole shards, committed once; resume; seal.

A shard's files are written beside their final names, made durable, renamed, and only then named by a record in the
manifest: whatever moment the process dies at, a record means that its bytes are there.
"""

import hashlib
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from torch import Tensor

from cache.errors import MismatchError
from cache.spec import CacheSpec
from cache.store.atomic import Leases, explained, fsync_folder, write_durably
from cache.store.codec import Distortion
from cache.store.documents import (
    LayerReport,
    ShardRecord,
    StoreAttributes,
    node_files,
    read_attributes,
    read_document,
    read_record,
    sign,
)
from cache.store.layout import LOCK, MANIFEST, ROOT, Layout, record_key, sample_arrays
from cache.store.metadata import data_files, small_files, view_matrix, weights_file
from cache.store.partition import WHOLE, Part
from cache.store.preconditions import require_free_folder, require_same_matrices, require_tokens
from cache.store.shard_writer import ShardWriter


class StoreWriter:
    """Creates or resumes a store, and holds the leases of its part's shards until it is closed.

    A store that is sealed already is left alone: `sealed` is true and no shard is missing.

    Args:
        tokens: of all samples, in dump order, whatever the part.
        head_weights: kept beside the arrays when the store is created.
        software: versions to record when the store is created.
        redo: shards whose commitment is withdrawn, to repair a store; small files that differ are written again.

    Raises:
        MismatchError: the store there has another spec, layout or drawn views; nothing was touched.
        StoreBusyError: another process holds one of the part's shards.
        StoreError: the folder holds something else, or cannot be written.
        DataError: a token is empty, doubled or not what the spec says.
    """

    def __init__(
        self,
        path: str | Path,
        spec: CacheSpec,
        tokens: Sequence[str],
        *,
        head_weights: Mapping[str, Tensor],
        software: Mapping[str, str],
        layout: Layout,
        part: Part = WHOLE,
        redo: Collection[int] | None = None,
    ) -> None:
        require_tokens(spec, tokens)
        self.path, self.spec, self.layout = Path(path), spec, layout
        self.arrays = sample_arrays(spec)
        self._shards = part.shards(self._total())
        self._open: dict[int, ShardWriter] = {}
        self._leases: Leases | None = None
        try:
            with explained(self.path):
                if not self._finished() or redo is not None:
                    self._take_leases(tokens, head_weights, software)
                if redo is not None:
                    self._withdraw(redo, tokens, head_weights)
        except BaseException:
            self._give_back()
            raise
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="compress")

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def sealed(self) -> bool:
        """The store is complete."""
        return read_attributes(self.path).sealed

    def missing_shards(self) -> list[int]:
        """The part's shards that are not committed."""
        return [shard for shard in self._shards if not (self.path / record_key(shard)).exists()]

    def positions(self, shard: int) -> range:
        """Which samples belong to a shard."""
        size = self.layout.samples_per_shard
        return range(shard * size, min((shard + 1) * size, self.spec.data.samples))

    def shard(self, shard: int) -> ShardWriter:
        """One of the missing shards, begun if it was not."""
        if shard not in self._open:
            with explained(self.path):
                samples = len(self.positions(shard))
                self._open[shard] = ShardWriter(self.path, self.spec, self.layout, shard, samples, self._pool)
        return self._open[shard]

    def seal(self) -> bool:
        """Mark the store as complete; false where other parts still have shards to commit."""
        if self._leases is None:
            return True
        with explained(self.path), self._root_lease():
            shards = range(self._total())
            if not all((self.path / record_key(shard)).exists() for shard in shards):
                return False
            report = _codec_report(self.spec, [read_record(self.path, shard) for shard in shards])
            self._update_root(sealed=True, codec_report=report)
            return True

    def close(self) -> None:
        """Discard shards that were not committed and give the leases back."""
        for shard in self._open.values():
            shard.discard()
        self._pool.shutdown()
        self._give_back()

    def _give_back(self) -> None:
        if self._leases:
            self._leases.close()
            self._leases = None

    def _root_lease(self) -> AbstractContextManager[None]:
        return self._leases.root() if self._leases else nullcontext()

    def _finished(self) -> bool:
        """Whether there is a sealed store; insists that a store there is the one that is asked for."""
        if not (self.path / ROOT).exists():
            return False
        attributes = read_attributes(self.path)
        attributes.spec.require(self.spec, self.path)
        if attributes.layout != self.layout:
            raise MismatchError(
                "the store is cut into files in another way",
                where=self.path,
                got=f"stored {attributes.layout}",
                expected=self.layout,
                cure="Resume with the layout that the dump began with, or dump to another folder",
            )
        return attributes.sealed

    def _take_leases(
        self, tokens: Sequence[str], head_weights: Mapping[str, Tensor], software: Mapping[str, str]
    ) -> None:
        require_free_folder(self.path)
        (self.path / MANIFEST).mkdir(parents=True, exist_ok=True)
        self._leases = Leases(self.path / LOCK)
        with self._root_lease():
            self._clean_documents()
            if not self._finished() and not (self.path / ROOT).exists():  # another may have been faster
                self._create(tokens, head_weights, software)
        if self.spec.drawn:
            require_same_matrices(self.path, view_matrix(self.spec, tokens))
        self._leases.take(self._shards)
        self._clean_shards()

    def _create(self, tokens: Sequence[str], head_weights: Mapping[str, Tensor], software: Mapping[str, str]) -> None:
        attributes = StoreAttributes(
            spec=self.spec,
            fingerprint=self.spec.fingerprint,
            classes=self.spec.teacher.classes,
            tasks=self.spec.teacher.tasks,
            layout=self.layout,
            software=dict(software),
            head_weights_sha256=hashlib.sha256(weights_file(head_weights)).hexdigest(),
        )
        for key, data in small_files(attributes, tokens, head_weights).items():
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / key, data)
            fsync_folder((self.path / key).parent.parent)

    def _withdraw(self, shards: Collection[int], tokens: Sequence[str], head_weights: Mapping[str, Tensor]) -> None:
        """Take shards out of the manifest, and write small files that differ again."""
        with self._root_lease():
            if shards:
                self._update_root(sealed=False, codec_report={})
            for shard in shards:
                (self.path / record_key(shard)).unlink(missing_ok=True)
            fsync_folder(self.path / MANIFEST)
            nodes = node_files(read_document(self.path / ROOT))
            for key, data in (nodes | data_files(self.spec, tokens, head_weights)).items():
                path = self.path / key
                if not (path.exists() and path.read_bytes() == data):
                    write_durably(path, data)

    def _update_root(self, **changes: object) -> None:
        attributes = read_attributes(self.path).model_copy(update=changes)
        document = read_document(self.path / ROOT) | {"attributes": attributes.model_dump(mode="json")}
        write_durably(self.path / ROOT, sign(document))

    def _total(self) -> int:
        return -(-self.spec.data.samples // self.layout.samples_per_shard)

    def _clean_shards(self) -> None:
        """Remove what a killed process left of this part's shards."""
        for folder in (MANIFEST, *self.arrays):
            for path in (self.path / folder).glob("*.partial"):
                shard = re.match(r"c\.(\d+)\.|(\d+)\.json", path.name)
                if shard and int(shard[1] or shard[2]) in self._shards:
                    path.unlink()

    def _clean_documents(self) -> None:
        """Remove what a killed process left of a document; only the holder of the root's lease writes them."""
        for path in self.path.rglob("*.partial"):
            of_shard = str(path.parent.relative_to(self.path)) in (MANIFEST, *self.arrays)
            if not of_shard or path.name.startswith(ROOT):
                path.unlink()


def _codec_report(spec: CacheSpec, records: list[ShardRecord]) -> dict[str, LayerReport]:
    report = {}
    for name in (layer.name for layer in spec.layers):
        total = sum((record.distortion[name] for record in records), start=Distortion())
        report[name] = LayerReport(
            sqnr_db=total.sqnr_db if math.isfinite(total.sqnr_db) else None,
            largest_error=total.largest,
            saturated_fraction=total.saturated / total.values,
        )
    return report
