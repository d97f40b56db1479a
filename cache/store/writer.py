"""StoreWriter: creates a store, commits whole shards once, resumes and seals.

A shard's files are written beside their final names, made durable, renamed, and only then named by a record in the
manifest: whenever the process dies, the bytes of a recorded shard are on disk.
"""

import hashlib
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
from cache.store.atomic import Leases, fsync_folder, store_errors, write_durably
from cache.store.documents import (
    StoreAttributes,
    codec_report,
    is_committed,
    node_files,
    read_attributes,
    read_document,
    read_record,
    sign,
)
from cache.store.layout import LOCK, MANIFEST, ROOT, Layout, record_key
from cache.store.metadata import small_files, view_matrix, weights_file
from cache.store.partition import WHOLE, Part
from cache.store.preconditions import require_free_folder, require_same_matrices, require_tokens
from cache.store.shard_writer import ShardWriter


class StoreWriter:
    """Creates or resumes a store, and holds the leases of its part's shards until it is closed.

    A store that is sealed already is left alone: `sealed` is true and no shard is missing.

    Args:
        tokens: of all samples, in dump order, also where a part is written.
        head_weights: stored beside the arrays when the store is created.
        software: versions to record when the store is created.
        redo: shards whose commitment is withdrawn, to repair a store; small files that differ are written again.

    Raises:
        MismatchError: the store there has another spec, layout or drawn views; nothing was touched.
        StoreBusyError: another process holds one of the part's shards.
        StoreError: the folder holds something else, or cannot be written.
        DataError: a token is empty, doubled or not one of the spec's.
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
        self._tokens, self._head_weights, self._software = tokens, head_weights, software
        self._all_shards = layout.shards(spec.data.samples)
        self._shards = part.shards(len(self._all_shards))
        self._open: dict[int, ShardWriter] = {}
        self._leases: Leases | None = None
        try:
            with store_errors(self.path):
                if not self._finished() or redo is not None:
                    self._take_leases()
                if redo is not None:
                    self._withdraw(redo)
        except BaseException:
            self._release()
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
        return [shard for shard in self._shards if not is_committed(self.path, shard)]

    def positions(self, shard: int) -> range:
        """The samples of a shard, by their positions in dump order."""
        return self.layout.positions(shard, self.spec.data.samples)

    def shard(self, shard: int) -> ShardWriter:
        """The writer of one of the missing shards, begun on first use."""
        if shard not in self._open:
            with store_errors(self.path):
                samples = len(self.positions(shard))
                self._open[shard] = ShardWriter(self.path, self.spec, self.layout, shard, samples, self._pool)
        return self._open[shard]

    def seal(self) -> bool:
        """Mark the store as complete; false where other parts still have shards to commit."""
        if self._leases is None:
            return True
        with store_errors(self.path), self._root_lease():
            if not all(is_committed(self.path, shard) for shard in self._all_shards):
                return False
            report = codec_report([read_record(self.path, shard) for shard in self._all_shards])
            self._update_root(sealed=True, codec_report=report)
            return True

    def close(self) -> None:
        """Discard shards that were not committed and release the leases."""
        for shard in self._open.values():
            shard.discard()
        self._pool.shutdown()
        self._release()

    def _release(self) -> None:
        if self._leases:
            self._leases.close()
            self._leases = None

    def _root_lease(self) -> AbstractContextManager[None]:
        return self._leases.root() if self._leases else nullcontext()

    def _finished(self) -> bool:
        """Whether there is a sealed store; raises where there is another store than this writer's."""
        if not (self.path / ROOT).exists():
            return False
        attributes = read_attributes(self.path)
        attributes.spec.require(self.spec, self.path)
        if attributes.layout != self.layout:
            raise MismatchError(
                "the store has another layout",
                where=self.path,
                got=f"stored {attributes.layout}",
                expected=self.layout,
                cure="Resume with the layout that the dump began with, or dump to another folder",
            )
        return attributes.sealed

    def _take_leases(self) -> None:
        """Create the store unless it exists, and take the leases of the part's shards."""
        require_free_folder(self.path)
        (self.path / MANIFEST).mkdir(parents=True, exist_ok=True)
        self._leases = Leases(self.path / LOCK)
        with self._root_lease():
            if not self._finished() and not (self.path / ROOT).exists():  # another process may have been faster
                self._create()
            if self.spec.drawn:
                require_same_matrices(self.path, view_matrix(self.spec, self._tokens))
            self._leases.take(self._shards)
            self._remove_partial_files()

    def _create(self) -> None:
        attributes = StoreAttributes(
            spec=self.spec,
            fingerprint=self.spec.fingerprint,
            classes=self.spec.teacher.classes,
            tasks=self.spec.teacher.tasks,
            layout=self.layout,
            software=dict(self._software),
            head_weights_sha256=hashlib.sha256(weights_file(self._head_weights)).hexdigest(),
        )
        for key, data in small_files(attributes, self._tokens, self._head_weights).items():
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / key, data)
            fsync_folder((self.path / key).parent.parent)

    def _withdraw(self, shards: Collection[int]) -> None:
        """Take shards out of the manifest, and write small files that differ again."""
        with self._root_lease():
            if shards:
                self._update_root(sealed=False, codec_report={})
            for shard in shards:
                (self.path / record_key(shard)).unlink(missing_ok=True)
            fsync_folder(self.path / MANIFEST)
            files = small_files(read_attributes(self.path), self._tokens, self._head_weights)
            for key, data in (files | node_files(read_document(self.path / ROOT))).items():
                path = self.path / key
                if key != ROOT and not (path.exists() and path.read_bytes() == data):
                    write_durably(path, data)

    def _update_root(self, **changes: object) -> None:
        attributes = read_attributes(self.path).model_copy(update=changes)
        document = read_document(self.path / ROOT) | {"attributes": attributes.model_dump(mode="json")}
        write_durably(self.path / ROOT, sign(document))

    def _remove_partial_files(self) -> None:
        """Remove what a killed process left of documents and of this part's shards; their leases are held."""
        for path in self.path.rglob("*.partial"):
            shard = re.match(r"c\.(\d+)\.|(\d+)\.json", path.name)
            if shard is None or int(shard[1] or shard[2]) in self._shards:
                path.unlink()
