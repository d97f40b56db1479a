"""TeacherCache: samples and batches of a store by token, on the CPU and still encoded.

No file stays open and no thread or event loop exists, so a cache may be forked, pickled and used from several threads.
Of a store at a URL (`cache.store.mirror`), threads and event loops belong to the process that asked for them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.errors import CorruptStoreError, MismatchError, NotCachedError, UnsealedError
from cache.geometry.camera_points import decoded_points
from cache.spec import CacheSpec, LayerSpec
from cache.store.batch import TeacherBatch, TeacherSample, empty_batch
from cache.store.documents import read_attributes, recorded_shards
from cache.store.files import read_file
from cache.store.format import REPAIR
from cache.store.layout import (
    CANVAS_MASK,
    DEPTH_POINTS,
    HEAD_WEIGHTS,
    VIEW_MATRIX,
    batch_arrays,
    head_map_array,
    view_matrix_shape,
)
from cache.store.mirror import Mirror, MirroredShards
from cache.store.remote import local_path
from cache.store.shard_reader import Chunk, ShardReader
from cache.store.small_arrays import Tokens, read_array


class TeacherCache:
    """A store of teacher features, opened for reading.

    Args:
        path: The store's folder; or a URL that fsspec reads, such as s3://bucket/teacher.zarr.
        allow_partial: Read what is committed of a dump that has not finished.
        expect: A spec, or a part of one as nested dicts, that the store must agree with.
        local_cache: A folder for the shards of stores at URLs; processes may share it.
        limit_gb: Of that folder; the shards that were not used for the longest time make room for others.

    Raises:
        StoreError: there is no store, or a server fails.
        UnsealedError: the dump has not finished.
        MismatchError: the store differs from `expect` (with one line for each difference), or is of another version.
        CorruptStoreError: a checksum fails.
        ConfigError: a URL without local_cache, or one that fsspec cannot read.

    Attributes:
        path: the store's folder; of a store at a URL, the folder in `local_cache` where its files are.
        url: None for a local store.
        all_tokens: also those that are not committed.
        stored_matrices: the array `view_matrix`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        allow_partial: bool = False,
        expect: CacheSpec | dict[str, Any] | None = None,
        local_cache: str | Path | None = None,
        limit_gb: float | None = None,
    ) -> None:
        self._allow_partial = allow_partial
        self._reopen = partial(TeacherCache, path, allow_partial=allow_partial)
        local = local_path(path)
        self.shards: ShardReader
        self.url: str | None = None
        if local is None:
            mirror = Mirror(str(path), local_cache, limit_gb)
            self._reopen = partial(self._reopen, local_cache=local_cache, limit_gb=limit_gb)
            self.path, self.url, self.attributes = mirror.path, mirror.url, mirror.attributes
            self.shards = MirroredShards(mirror)
        else:
            self.path, self.attributes = local, read_attributes(local)
            self.shards = ShardReader(self.path, self.attributes)
        self.spec = self.attributes.spec
        if expect is not None:
            self.spec.require(expect, self.path)
        files = self.attributes.small_arrays
        self.all_tokens = Tokens.open(self.path, self.spec.data.samples, files)
        self.tokens: Sequence[str] = self.all_tokens if self.attributes.sealed else self._committed_tokens()
        shape = view_matrix_shape(self.spec)
        self.stored_matrices = read_array(self.path, VIEW_MATRIX, "<f4", shape, files.get(VIEW_MATRIX))

    def __reduce__(self) -> tuple:
        """Pickle as a path: a worker process opens the store again."""
        return self._reopen, ()

    def __repr__(self) -> str:
        state = "" if self.attributes.sealed else ", not complete"
        return f"TeacherCache({self.url or str(self.path)!r}, {len(self)} samples{state}: {self.spec!r})"

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.tokens

    def __getitem__(self, token: str) -> TeacherSample:
        """All views and layers of one sample.

        Raises:
            NotCachedError: the token was not dumped.
            CorruptStoreError: a checksum fails.
        """
        views = tuple(range(len(self.spec.views)))
        batch = self.read((token,) * len(views), views=views, head_maps=True)
        return TeacherSample(
            token=token,
            views=self.spec.views,
            features=batch.features,
            heatmap=batch.heatmap,
            canvas_mask=batch.canvas_mask,
            head_maps=batch.head_maps,
            view_matrix=batch.view_matrix,
        )

    def read(
        self,
        tokens: Sequence[str],
        layers: Sequence[str] | None = None,
        views: Sequence[int] | None = None,
        head_maps: bool = False,
        out: TeacherBatch | None = None,
    ) -> TeacherBatch:
        """Read one view of each token, in their order; tokens may repeat.

        Args:
            layers: Which layers; all by default.
            views: An index into `spec.views` for each token; the first view by default.
            head_maps: Read the head's other maps too.
            out: Buffers to read into (see `buffers`), at least as many samples; these give layers and head maps.

        Raises:
            NotCachedError: a token, layer or view was not dumped.
            CorruptStoreError: a checksum fails.
        """
        chunks = self._chunks(tokens, views)
        batch = self.buffers(len(chunks), layers, head_maps) if out is None else out.first(len(chunks))
        for row, chunk in enumerate(chunks):
            self._fill(batch, row, chunk)
        return replace(batch, tokens=tuple(tokens))

    def buffers(
        self, samples: int, layers: Sequence[str] | None = None, head_maps: bool = False, pin: bool = False
    ) -> TeacherBatch:
        """Memory that `read` can fill repeatedly: no tokens, and uninitialised values.

        Args:
            pin: Page-locked memory, from which a copy to a GPU does not block.

        Raises:
            NotCachedError: a layer was not dumped.
        """
        chosen = self.spec.layers if layers is None else [self._layer(name) for name in layers]
        return empty_batch(self.spec, chosen, samples, head_maps, pin)

    def fetch_ahead(
        self,
        tokens: Sequence[str],
        layers: Sequence[str] | None = None,
        head_maps: bool = False,
        depth: bool = False,
    ) -> None:
        """Fetch the shards of these tokens in the background, in their order; nothing is done for a local store.

        Args:
            layers, head_maps: as in `read`.
            depth: also what `camera_points` reads.

        Raises:
            NotCachedError: a token or layer was not dumped.
        """
        if not isinstance(self.shards, MirroredShards):
            return
        chosen = [layer.name for layer in self.spec.layers] if layers is None else layers
        wanted = batch_arrays(self._layer(name).name for name in chosen)
        wanted |= {head_map_array(name) for name in self.spec.head_maps if head_maps}
        wanted |= {DEPTH_POINTS} if depth else set()
        arrays = [name for name in self.shards.arrays if name in wanted]
        shards = dict.fromkeys(chunk.shard for chunk in self._chunks(tokens, None))
        self.shards.fetch_ahead([(name, shard) for shard in shards for name in arrays])

    def head_weights(self) -> dict[str, Tensor]:
        """The state dict of the teacher's head, for students that inherit it.

        Raises:
            CorruptStoreError: the file is missing, does not match its SHA-256, or is no safetensors.
        """
        data = read_file(self.path, HEAD_WEIGHTS)
        if hashlib.sha256(data).hexdigest() != self.attributes.head_weights_sha256:
            raise CorruptStoreError(
                "the head's weights do not match their SHA-256", where=self.path / HEAD_WEIGHTS, cure=REPAIR
            )
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise CorruptStoreError(
                "the head's weights are no safetensors", where=self.path / HEAD_WEIGHTS, got=error, cure=REPAIR
            ) from error

    def view_matrices(self, tokens: Sequence[str]) -> Float[np.ndarray, "B V 4 4"]:
        """Canonical LiDAR -> the BEV frame, of all views of each token.

        Raises:
            NotCachedError: a token was not dumped.
        """
        return np.stack([self._matrices_at(self._position(token)) for token in tokens])

    def camera_points(self, token: str, nearest_m: float = 0.0) -> list[Float[np.ndarray, "_ 3"]]:
        """u, v (original pixels) and depth (metres) of the key sweep's points in each camera, nearest first.

        The same as `cache.nuscenes.points.camera_points` of the frame, rounded to the steps of `spec.depth`.

        Raises:
            NotCachedError: the token was not dumped, or the store keeps no depth.
            CorruptStoreError: a checksum fails.
        """
        spec = self.spec.depth
        if spec is None:
            raise NotCachedError("the store keeps no depth", where=self.path, cure="Dump it with `depth: true`")
        (chunk,) = self._chunks((token,), None)
        codes = np.empty(spec.shape, np.uint16)
        self.shards.read(DEPTH_POINTS, chunk, codes)
        return decoded_points(codes, spec, nearest_m)

    def view(self, name: str) -> int:
        """The index of the view of that name.

        Raises:
            NotCachedError: it was not dumped.
        """
        if name not in self.spec.views:
            raise self._no_view(name)
        return self.spec.views.index(name)

    def committed_shards(self) -> list[int]:
        """The shards that the manifest names now; all of them once the store is sealed."""
        shards = self.attributes.layout.shards(len(self.all_tokens))
        return list(shards) if self.attributes.sealed else sorted(recorded_shards(self.path) & {*shards})

    def tokens_of(self, shard: int) -> tuple[str, ...]:
        """The tokens of a shard's samples, in its order."""
        positions = self.attributes.layout.positions(shard, len(self.all_tokens))
        return self.all_tokens[positions.start : positions.stop]

    def shards_of(self, tokens: Sequence[str]) -> Int[np.ndarray, "B"]:
        """The shard of each token.

        Raises:
            NotCachedError: a token was not dumped.
        """
        return np.array([self._position(token) // self.shards.size for token in tokens], dtype=np.int64)

    def chunks_of(self, shard: int) -> list[Chunk]:
        """All samples and views of a shard, in its order."""
        rows, views = enumerate(self.tokens_of(shard)), range(len(self.spec.views))
        return [Chunk(token=token, shard=shard, row=row, view=view) for row, token in rows for view in views]

    def bytes_per_sample(self, shards: Sequence[int] | None = None) -> dict[str, float]:
        """Stored bytes of a sample by array, as the manifest counts them in some shards; in all by default.

        Raises:
            CorruptStoreError: a shard's record is missing or broken.
        """
        counted = self.committed_shards() if shards is None else shards
        samples = max(1, sum(len(self.tokens_of(shard)) for shard in counted))
        return {name: sum(self.shards.file(name, s).bytes for s in counted) / samples for name in self.shards.arrays}

    def _fill(self, batch: TeacherBatch, row: int, chunk: Chunk) -> None:
        """Read one sample into a row of a batch."""
        for name, out in batch.row(row).items():
            self.shards.read(name, chunk, out)
        packed = np.empty(self.shards.arrays[CANVAS_MASK].shape, np.uint8)
        self.shards.read(CANVAS_MASK, chunk, packed)
        mask = batch.canvas_mask[row].numpy()
        mask[...] = np.unpackbits(packed, axis=-1, count=mask.shape[-1])
        position = chunk.shard * self.shards.size + chunk.row
        batch.view_matrix[row].numpy()[...] = self._matrices_at(position)[chunk.view]

    def _chunks(self, tokens: Sequence[str], views: Sequence[int] | None) -> list[Chunk]:
        """Shard and row of each sample, with its view."""
        chunks = []
        for token, view in zip(tokens, views or (0,) * len(tokens), strict=True):
            if not 0 <= view < len(self.spec.views):
                raise self._no_view(view)
            shard, row = divmod(self._position(token), self.shards.size)
            chunks.append(Chunk(token=token, shard=shard, row=row, view=view))
        return chunks

    def _matrices_at(self, position: int) -> Float[np.ndarray, "V 4 4"]:
        return self.stored_matrices if self.spec.drawn is None else self.stored_matrices[position]

    def _layer(self, name: str) -> LayerSpec:
        try:
            return self.spec.layer(name)
        except MismatchError:
            known = " or ".join(layer.name for layer in self.spec.layers)
            raise self._not_cached("layer", name, known, "Dump it, or choose another layer") from None

    def _no_view(self, got: str | int) -> NotCachedError:
        known = ", ".join(f"{index}: {name}" for index, name in enumerate(self.spec.views))
        return self._not_cached("view", got, known, "Choose another view, or dump it")

    def _position(self, token: str) -> int:
        position = self.all_tokens.find(token)
        if position is None or (self.tokens is not self.all_tokens and token not in self.tokens):
            known = f"one of {len(self.tokens)} of {self.spec.data.version}, {', '.join(self.spec.data.splits)}"
            raise self._not_cached("token", token, known, "Train on the splits that were dumped, or dump these")
        return position

    def _not_cached(self, what: str, got: object, known: object, cure: str) -> NotCachedError:
        return NotCachedError(
            f"the store does not hold this {what}", where=self.path, got=got, expected=known, cure=cure
        )

    def _committed_tokens(self) -> tuple[str, ...]:
        """The tokens of the shards that the manifest names now."""
        if not self._allow_partial:
            raise UnsealedError(
                "the dump has not finished",
                where=self.path,
                cure="Run `cli dump-teacher` again to resume it, or open the store with allow_partial=True",
            )
        return tuple(token for shard in self.committed_shards() for token in self.tokens_of(shard))
