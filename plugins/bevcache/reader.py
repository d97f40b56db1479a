"""Read a store (docs/store.md, format versions 1 and 2), every byte under a checksum, from threads and forks alike."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import google_crc32c
import numpy as np
import torch
from numcodecs import zstd

REPAIR = "Run `cli verify` on the store, then repair it or copy it again"
DTYPES = {"unsigned": "u1", "signed": "i1", "float16": "f2"}
Names = Optional[Sequence[str]]
Batch = Dict[str, torch.Tensor]
"""B samples by array: features/<layer>, features/<layer>_scale, heatmap, canvas_mask, view_matrix."""


class BevCacheError(Exception):
    """What went wrong, where, what was found and expected, and what to do about it."""

    def __init__(self, what: str, where: object = None, got: object = None, expected: object = None, cure: str = ""):
        facts = {" ({})": where, "; got {}": got, "; expected {}": expected, ". {}.": cure or None}
        super().__init__(what + "".join(text.format(fact) for text, fact in facts.items() if fact is not None))


class CorruptStoreError(BevCacheError):
    """Bytes that do not match their checksum, or a broken layout."""


class NotCachedError(BevCacheError, KeyError):
    """A token, layer or view that was not dumped; also a KeyError."""

    __str__ = Exception.__str__


class Grid(NamedTuple):
    """A rectangle of BEV cells; cell (0, 0) is at (x_min, y_min). With axes "yx" a map's rows are y, its columns x.

    Metres are those of `frame`: "lidar" (nuScenes' LIDAR_TOP, y forward) or "ego" (the vehicle, x forward).
    """

    x_range_m: Tuple[float, float]
    y_range_m: Tuple[float, float]
    cell_m: Tuple[float, float]
    frame: str = "lidar"
    axes: str = "yx"

    @property
    def shape(self) -> Tuple[int, int]:
        """(H, W): numbers of rows and columns."""
        x, y = (round((high - low) / cell) for (low, high), cell in zip(self[:2], self.cell_m))
        return (y, x) if self.axes == "yx" else (x, y)

    def cell_matrix(self) -> np.ndarray:
        """(3, 3): metres (x, y, 1) to continuous cell coordinates (column, row, 1)."""
        (x0, _), (y0, _), (cell_x, cell_y) = self[:3]
        matrix = np.array([[1 / cell_x, 0.0, -x0 / cell_x], [0.0, 1 / cell_y, -y0 / cell_y], [0.0, 0.0, 1.0]])
        return matrix if self.axes == "yx" else matrix[[1, 0, 2]]


class TeacherStore:
    """A sealed store, opened for reading: its `spec` as plain data, `layers` by name, `positions` of tokens.

    Reading raises NotCachedError for what was not dumped, and CorruptStoreError where a checksum fails.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").exists():
            raise BevCacheError("there is no store here", path, cure="Point to the folder of `cli dump-teacher`")
        self._folder = self.path.resolve()
        self._root = root = self._document("zarr.json")["attributes"]
        if root.get("format_version") not in (1, 2):
            raise BevCacheError("another format version", path, root.get("format_version"), "1 or 2", "Update bevcache")
        if not root["sealed"]:
            raise BevCacheError("the dump has not finished", path, cure="Run `cli dump-teacher` again to resume it")
        self.spec: Dict[str, Any] = root["spec"]
        self.layers: Dict[str, Dict[str, Any]] = {layer["name"]: layer for layer in self.spec["layers"]}
        self._views, self._size = len(self.spec["views"]), root["layout"]["samples_per_shard"]
        samples = self.spec["data"]["samples"]
        names = self._small_array("token", "u1", (samples, -1))
        self.positions = {name.decode(): n for n, name in enumerate(names.view(f"S{names.shape[1]}")[:, 0].tolist())}
        shape = (self._views, 4, 4)
        matrices = self._small_array("view_matrix", "<f4", (samples, *shape) if self.spec.get("drawn") else shape)
        self._matrices = np.broadcast_to(matrices, (samples, *shape))
        self._arrays = self._list_arrays()
        self._indexes: Dict[Tuple[str, int], Tuple[Path, list, Optional[list]]] = {}

    def buffers(self, samples: int, layers: Names = None) -> Batch:
        """Memory for `samples` samples, uninitialised. Layers: all by default."""
        wanted = {"heatmap", "canvas_mask", "view_matrix"}
        for name in self.layers if layers is None else layers:
            if name not in self.layers:
                raise self._not_cached("layer", name, " or ".join(self.layers))
            wanted |= {f"features/{name}", f"features/{name}_scale"}
        arrays = {name: dtype for name, dtype in self._arrays.items() if name in wanted}
        return {name: torch.from_numpy(np.empty(samples, dtype)) for name, dtype in arrays.items()}

    def read(self, tokens: Sequence[str], layers: Names = None, views: Any = None, out: Any = None) -> Batch:
        """One view of each token, in their order, still encoded: (B, C, H, W) codes, (B, C) scales.

        Args:
            layers: which layers; all by default.
            views: an index into the spec's views for each token; the first by default.
            out: buffers for at least as many samples, which are filled and decide what is read.
        """
        out = {name: t[: len(tokens)] for name, t in (out or self.buffers(len(tokens), layers)).items()}
        for row, (token, view) in enumerate(zip(tokens, views or [0] * len(tokens))):
            if not 0 <= view < self._views:
                raise self._not_cached("view", view, f"0 .. {self._views - 1}")
            matrices, targets = self.view_matrices(token), {name: t[row].numpy() for name, t in out.items()}
            targets.pop("view_matrix")[...] = matrices[view]
            for name, target in targets.items():
                self._read_chunk(name, token, view, target)
        return out

    def view_matrices(self, token: str) -> np.ndarray:
        """(V, 4, 4): canonical LiDAR -> the BEV frame of each of a token's views."""
        if token not in self.positions:
            raise self._not_cached("token", token, f"one of {len(self.positions)} of {self.spec['data']['splits']}")
        return self._matrices[self.positions[token]]

    def nearest_view(self, token: str, augmentation: np.ndarray) -> int:
        """The view that moves points 30 m away most nearly as `augmentation` does (4, 4; in the LiDAR frame)."""
        residual = augmentation @ np.linalg.inv(self.view_matrices(token).astype(np.float64))
        linear, offset = residual[:, :2, :2] - np.eye(2), residual[:, :2, 3]
        return int((450.0 * np.square(linear).sum((1, 2)) + np.square(offset).sum(1)).argmin())

    def _list_arrays(self) -> Dict[str, np.dtype]:
        """By name, dtype with the shape of a sample's view."""
        spec = self.spec
        arrays: Dict[str, Any] = {
            "view_matrix": ("f4", (4, 4)),
            "canvas_mask": ("?", Grid(**spec["canvas_grid"]).shape),
        }
        if spec.get("heatmap") != "none":
            arrays["heatmap"] = ("u1", (len(self._root["classes"]), *Grid(**spec["heatmap_grid"]).shape))
        for name, layer in self.layers.items():
            codes = DTYPES[layer["codec"]["kind"]]
            arrays[f"features/{name}"] = (codes, (layer["channels"], *Grid(**layer["grid"]).shape))
            if codes != "f2":
                arrays[f"features/{name}_scale"] = ("f4", (layer["channels"],))
        return {name: np.dtype(array) for name, array in arrays.items()}

    def _read_chunk(self, name: str, token: str, view: int, out: np.ndarray) -> None:
        shard, row = divmod(self.positions[token], self._size)
        number, place = row * self._views + view, f"{self.path}, {name}, token {token}, view {view}"
        path, index, checksums = self._index(name, shard)
        body = _checked(_bytes(path, *index[number]), place, checksums[number] if checksums else None)
        try:
            values = np.frombuffer(zstd.decompress(body), "u1" if out.dtype == bool else out.dtype)
            if out.dtype == bool:
                values = np.unpackbits(values.reshape(len(out), -1), axis=1)[:, : out.shape[1]]
            out[...] = values.reshape(out.shape)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise CorruptStoreError("a chunk does not unpack into its place", place, error, cure=REPAIR) from error

    def _index(self, name: str, shard: int) -> Tuple[Path, list, Optional[list]]:
        """A shard's file, its chunks' offsets and sizes, and the checksums they were committed with (version 2)."""
        if (name, shard) not in self._indexes:
            record, place = self._document(f"manifest/{shard}.json"), f"{self.path}, {name}, shard {shard}"
            second = self._root["format_version"] == 2
            file, digits = record["files"][name], record["files"][name].get("chunks_crc32c") or ""
            count = min(self._size, len(self.positions) - shard * self._size) * self._views
            expected = [shard, self._root["fingerprint"] if second else None, 8 * count if second else 0]
            if [record["shard"], record.get("fingerprint"), len(digits)] != expected:
                raise CorruptStoreError("a record is of another shard or another store", place, cure=REPAIR)
            path = self._file(f"{name}/c.{shard}" + ".0" * (1 + self._arrays[name].ndim))
            size = 16 * self._size * self._views + 4
            body = _checked(_bytes(path, file["bytes"] - size, size), place, file["index_crc32c"])
            checksums = np.frombuffer(bytes.fromhex(digits), ">u4").tolist() if second else None
            self._indexes[name, shard] = path, body.view("<i8").reshape(-1, 2).tolist(), checksums
        return self._indexes[name, shard]

    def _small_array(self, name: str, dtype: str, shape: Tuple[int, ...]) -> np.ndarray:
        path, file = self._file(f"{name}/c" + ".0" * len(shape)), self._root.get("small_arrays", {}).get(name)
        return _checked(_bytes(path), str(path), file and file["crc32c"]).view(dtype).reshape(shape)

    def _document(self, key: str) -> Dict[str, Any]:
        """A JSON document, compared with the SHA-256 that it carries."""
        try:
            document = json.loads(_bytes(self._file(key)).tobytes())
            stored = document.get("attributes", document).pop("sha256", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise CorruptStoreError("a document is broken", self.path / key, error, cure=REPAIR) from error
        content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        if stored != hashlib.sha256(content).hexdigest():
            raise CorruptStoreError("a document does not match its SHA-256", self.path / key, cure=REPAIR)
        return document

    def _file(self, key: str) -> Path:
        """A regular file within the store, reached by no link."""
        path = self.path / key
        if path.exists() and (not path.is_file() or os.path.realpath(path) != str(self._folder / key)):
            raise CorruptStoreError("no regular file of the store", path, cure="Copy the store with `cp -rL`")
        return path

    def _not_cached(self, what: str, got: object, known: str) -> NotCachedError:
        return NotCachedError(f"the store does not hold this {what}", self.path, got, known, "Dump it, or leave it out")


def _bytes(path: Path, offset: int = 0, size: Optional[int] = None) -> np.ndarray:
    """Bytes of a file; all of them where `size` is None."""
    try:
        data = np.fromfile(path, np.uint8, -1 if size is None else size, offset=offset)
    except OSError as error:
        raise CorruptStoreError("a file cannot be read", path, error.strerror, cure=REPAIR) from error
    if size is not None and len(data) != size:
        raise CorruptStoreError("a file is cut short", path, f"{len(data)} bytes", size, REPAIR)
    return data


def _checked(stored: np.ndarray, place: str, committed: Optional[int] = None) -> np.ndarray:
    """The bytes before a crc32c, which has to match, and to be the committed one where that is known."""
    body, checksum = stored[:-4], int.from_bytes(stored[-4:].tobytes(), "little")
    if stored.size < 4 or checksum != google_crc32c.value(body):
        raise CorruptStoreError("stored bytes do not match their checksum", place, cure=REPAIR)
    if committed is not None and checksum != committed:
        raise CorruptStoreError("stored bytes are whole, but not those that were committed", place, cure=REPAIR)
    return body
