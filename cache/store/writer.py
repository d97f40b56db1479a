"""StoreWriter: creates a store, commits whole shards once, resumes and seals.

A shard's files are written beside their final names, made durable, renamed, and only then named by a record in the
manifest: whenever the process dies, the bytes of a recorded shard are on disk. The store is held by the descriptors of
its folders: a process that outlives its store writes nothing to the one that is there now.
"""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from cache.errors import CorruptStoreError, MismatchError, StoreError
from cache.spec import CacheSpec
from cache.store.atomic import Leases, store_errors
from cache.store.documents import (
    StoreAttributes,
    TeacherFile,
    codec_report,
    is_committed,
    node_files,
    parse_attributes,
    read_attributes,
    read_record,
    read_signed,
    sign,
)
from cache.store.folder import StoreFolder
from cache.store.format import REPAIR
from cache.store.layout import MANIFEST, ROOT, Layout, record_key, sample_arrays
from cache.store.metadata import small_array_files, small_files, view_matrix, weights_file
from cache.store.partition import WHOLE, Part
from cache.store.preconditions import require_free_folder, require_same_matrices, require_tokens
from cache.store.shard_writer import ShardWriter
from cache.store.stored_frames import FrameFiles

PARTIAL = re.compile(r"(.+)\.\d+\.partial")
"""A file that is being written, and what it is to become."""


class StoreWriter:
    """Creates or resumes a store, and holds the leases of its part's shards until it is closed.

    A store that is sealed already is left alone, unless it lacks its frames: `sealed` is true and no shard is missing.

    Args:
        tokens: of all samples, in dump order, also where a part is written.
        head_weights: stored beside the arrays when the store is created.
        software: versions to record when the store is created.
        redo: shards whose commitment is withdrawn, to repair a store; small files that differ are written again.
        teacher_file: the checkpoint that the teacher was loaded from, to be recorded when the store is created.
        frames: the files of the frames' index by name, its record last; empty where there are no tables.

    Attributes:
        mended: small files that were missing, damaged or another store's, and were written again.

    Raises:
        MismatchError: the store there has another spec, layout, teacher's file or drawn views; nothing was touched.
        CorruptStoreError: its root is broken; or it was complete and lacks records, unless it is being repaired.
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
        teacher_file: TeacherFile | None = None,
        frames: Mapping[str, bytes] | None = None,
    ) -> None:
        require_tokens(spec, tokens)
        self.path, self.spec, self.layout = Path(path), spec, layout
        self._tokens, self._head_weights, self._software = tokens, head_weights, software
        self._teacher_file = teacher_file
        self._frames = FrameFiles(files=frames or {}, tokens=tokens)
        self.mended: list[str] = []
        self._all_shards = layout.shards(spec.data.samples)
        self._shards = part.shards(len(self._all_shards))
        self._open: dict[int, ShardWriter] = {}
        self._folder: StoreFolder | None = None
        self._leases: Leases | None = None
        try:
            with store_errors(self.path):
                if redo is not None or not self._finished():
                    self._take_leases(redo)
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

    @property
    def shards(self) -> range:
        """The part's shards."""
        return self._shards

    def missing_shards(self) -> list[int]:
        """The part's shards that are not committed."""
        return [shard for shard in self._shards if not self._is_committed(shard)]

    def missing_samples(self) -> int:
        """How many samples of the whole store are not committed now."""
        return sum(len(self.positions(shard)) for shard in self._all_shards if not self._is_committed(shard))

    def positions(self, shard: int) -> range:
        """The samples of a shard, by their positions in dump order."""
        return self.layout.positions(shard, self.spec.data.samples)

    def shard(self, shard: int) -> ShardWriter:
        """The writer of one of the missing shards, begun on first use."""
        if shard not in self._open:
            with store_errors(self.path):
                folder, attributes = self._require_ours()
                samples = len(self.positions(shard))
                self._open[shard] = ShardWriter(folder, self._require_ours, attributes, shard, samples, self._pool)
        return self._open[shard]

    def seal(self) -> bool:
        """Mark the store as complete; false where other parts still have shards to commit.

        Raises:
            CorruptStoreError: a record is broken, or another store's.
            StoreError: the store was removed or replaced while this process was writing to it.
        """
        if self._leases is None:
            return True
        with store_errors(self.path), self._leases.root():
            if not all(self._is_committed(shard) for shard in self._all_shards):
                return False
            folder, attributes = self._require_ours(sealed=None)
            report = codec_report([read_record(self.path, shard, attributes) for shard in self._all_shards])
            self._update_root(folder, sealed=True, codec_report=report)
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
        if self._folder:
            self._folder.close()
            self._folder = None

    def _require_ours(self, sealed: bool | None = False) -> tuple[StoreFolder, StoreAttributes]:
        """The store as it is now; raises where it is no longer the one that this process opened.

        Args:
            sealed: what it has to be; None where that does not matter.
        """
        if self._folder is None or self._leases is None:
            raise StoreError("the store is complete: its writer holds no lease", where=self.path)
        self._leases.require_held()
        attributes = self._attributes(self._folder)
        self._require_same(attributes)
        if sealed is not None and attributes.sealed != sealed:
            raise StoreError(
                "the store was completed by another process while this one was writing to it",
                where=self.path,
                cure="Run `cli verify` on it",
            )
        return self._folder, attributes

    def _is_committed(self, shard: int) -> bool:
        if self._folder is None:
            return is_committed(self.path, shard)
        return self._folder.status(record_key(shard)) is not None

    def _finished(self) -> bool:
        """Whether there is a sealed store with its frames; raises where it is not this writer's, or lacks records."""
        if not (self.path / ROOT).exists():
            return False
        attributes = read_attributes(self.path)
        self._require_same(attributes)
        missing = [shard for shard in self._all_shards if not is_committed(self.path, shard)]
        if attributes.sealed and missing:
            # Writing these alone would seal what else a repair had found when it was stopped here.
            raise CorruptStoreError(
                "the store was complete, and lacks the records of some shards",
                where=self.path / MANIFEST,
                got=f"shards {', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''} missing",
                cure=REPAIR,
            )
        return attributes.sealed and self._frames.are_in(self.path, attributes)

    def _require_same(self, attributes: StoreAttributes) -> None:
        stored, ours = attributes.teacher_file, self._teacher_file
        if stored is not None and ours is not None and stored.name == ours.name and stored != ours:
            raise MismatchError(
                "the teacher's checkpoint is not the file that the store was begun with",
                where=self.path,
                got=f"{ours.name} with SHA-256 {ours.sha256}",
                expected=stored.sha256,
                cure="Fetch the checkpoint again; if it was replaced on purpose, dump to another folder",
            )
        attributes.spec.require(self.spec, self.path)
        if attributes.layout != self.layout:
            raise MismatchError(
                "the store has another layout",
                where=self.path,
                got=f"stored {attributes.layout}",
                expected=self.layout,
                cure="Resume with the layout that the dump began with, or dump to another folder",
            )

    def _take_leases(self, redo: Collection[int] | None) -> None:
        """Create the store unless it exists, and take the leases of the part's shards."""
        require_free_folder(self.path, lambda: [*self._small_files(self._new_attributes()), *self._frames.keys])
        self.path.mkdir(parents=True, exist_ok=True)
        self._folder = folder = StoreFolder(self.path)
        folder.make(MANIFEST)
        self._leases = Leases(folder)
        with self._leases.root():
            self._leases.require_held()
            if folder.status(ROOT) is None:  # otherwise another process may have been faster
                self._create(folder)
            attributes = self._attributes(folder)
            self._require_same(attributes)
            self._leases.take(self._shards)
            self._remove_partial_files(folder)
            if redo:
                self._withdraw(folder, redo)
            self._mend_small_files(folder)
            self._mend_frames(folder)

    def _new_attributes(self) -> StoreAttributes:
        return StoreAttributes(
            spec=self.spec,
            fingerprint=self.spec.fingerprint,
            classes=self.spec.teacher.classes,
            tasks=self.spec.teacher.tasks,
            layout=self.layout,
            software=dict(self._software),
            head_weights_sha256=hashlib.sha256(weights_file(self._head_weights)).hexdigest(),
            teacher_file=self._teacher_file,
            small_arrays=small_array_files(self.spec, self._tokens),
            frames_sha256=self._frames.sha256,
        )

    def _attributes(self, folder: StoreFolder) -> StoreAttributes:
        """Those of the store that this process holds."""
        return parse_attributes(folder.read(ROOT) or b"", str(self.path / ROOT))

    def _small_files(self, attributes: StoreAttributes) -> dict[str, bytes]:
        return small_files(attributes, self._tokens, self._head_weights)

    def _create(self, folder: StoreFolder) -> None:
        self._frames.write(folder)
        for key, data in self._small_files(self._new_attributes()).items():
            folder.write_durably(key, data)

    def _withdraw(self, folder: StoreFolder, shards: Collection[int]) -> None:
        """Take shards out of the manifest, and only then the seal off the root.

        Whoever finds a sealed store without some records knows that a repair was stopped, and of which damage.
        """
        for shard in shards:
            folder.remove(record_key(shard))
        folder.fsync(MANIFEST)
        self._update_root(folder, sealed=False, codec_report={})

    def _mend_small_files(self, folder: StoreFolder) -> None:
        """Make all folders, and write small files again that differ from what they were when the store was created."""
        attributes = self._attributes(folder)
        require_same_matrices(self.path, attributes, view_matrix(self.spec, self._tokens))
        root = read_signed(folder.read(ROOT) or b"", str(self.path / ROOT))
        for key, data in (self._small_files(attributes) | node_files(root, attributes.spec)).items():
            folder.make(key.rpartition("/")[0])
            if key != ROOT and folder.read(key) != data:
                folder.write_durably(key, data)
                self.mended.append(key)

    def _mend_frames(self, folder: StoreFolder) -> None:
        """Write the frames, and bind them to the root, unless the store has intact ones of its samples.

        Those of a store may differ from the tables as they are now.
        """
        attributes = self._attributes(folder)
        if self._frames.are_in(self.path, attributes):
            return
        self._require_ours(sealed=None)
        self.mended += self._frames.write(folder)
        if attributes.format_version > 1:
            self._update_root(folder, frames_sha256=self._frames.sha256)

    def _update_root(self, folder: StoreFolder, **changes: object) -> None:
        attributes = self._attributes(folder).model_copy(update=changes)
        self._require_same(attributes)
        document = read_signed(folder.read(ROOT) or b"", str(self.path / ROOT)) | {"attributes": attributes.to_json()}
        folder.write_durably(ROOT, sign(document))

    def _remove_partial_files(self, folder: StoreFolder) -> None:
        """Remove what a killed process left of documents and of this part's shards; their leases are held."""
        attributes = self._attributes(folder)
        shards = {array.key(shard) for array in sample_arrays(self.spec).values() for shard in self._shards}
        written = {*self._small_files(attributes), *self._frames.keys, *shards, *map(record_key, self._shards)}
        for name in {key.rpartition("/")[0] for key in written}:
            folder.make(name)
            for file in folder.files(name):
                key = f"{name}/{file}" if name else file
                if (match := PARTIAL.fullmatch(key)) and match[1] in written:
                    folder.unlink(key)
