"""The same features in other formats, each as its own users would write and read it, for benchmarks/cache_io.py.

A peer writes samples to a folder once and opens it as a data set for a DataLoader whose workers join samples to
batches. Peers of 8 bits keep the codes and scales that our store keeps, those of 16 and 32 bits the decoded features.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import zarr
from numcodecs import zstd
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cache.store.reader import TeacherCache

BATCH, WORKERS = 4, 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """values: uint8 codes with scale float32 (C,), or decoded features with no scale; (C, H, W)."""

    values: Tensor
    scale: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a peer stores."""
        return {"values": self.values} | ({} if self.scale is None else {"scale": self.scale})


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One format, or another reader of our store where `write` is None.

    batches: a folder and positions -> an iterable of batches, in this order where the format knows random access.
    """

    name: str
    dtype: torch.dtype
    batches: Callable[[Path, Sequence[int]], Iterable[Any]]
    write: Callable[[Path, Iterable[Sample]], None] | None = None
    package: str | None = None
    compressed: bool = False

    @property
    def missing(self) -> bool:
        """Its package is not installed."""
        return self.package is not None and find_spec(self.package) is None


def loader_of(dataset: Dataset, **options: Any) -> DataLoader:
    """The DataLoader that all take part with."""
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True, **options)


@dataclass(frozen=True)
class _Items(Dataset):
    """Samples by position, each read by itself."""

    folder: Path
    read: Callable[[Path, int], dict[str, Tensor]]

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.read(self.folder, position)


def _indexed(read: Callable[[Path, int], dict[str, Tensor]]) -> Callable[[Path, Sequence[int]], DataLoader]:
    return lambda folder, order: loader_of(_Items(folder, read), sampler=order)


_OPEN: dict[Path, Any] = {}
"""What this process (a worker) has open, by folder."""


def _opened(folder: Path, function: Callable[[Path], Any]) -> Any:
    if folder not in _OPEN:
        _OPEN[folder] = function(folder)
    return _OPEN[folder]


def _write_files(save: Callable[[dict[str, Tensor], Path], None], folder: Path, samples: Iterable[Sample]) -> None:
    for position, sample in enumerate(samples):
        save(sample.tensors, folder / str(position))


def _save_npy(tensors: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, tensors["values"].numpy())


def _read_npy(folder: Path, position: int) -> dict[str, Tensor]:
    return {"values": torch.from_numpy(np.load(folder / str(position)))}


def _read_torch(folder: Path, position: int) -> dict[str, Tensor]:
    return torch.load(folder / str(position), weights_only=True)


def _read_safetensors(folder: Path, position: int) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / str(position))


def _write_h5(compression: str, folder: Path, samples: Iterable[Sample]) -> None:
    h5py = importlib.import_module("h5py")
    with h5py.File(folder / "all.h5", "w") as file:
        for position, sample in enumerate(samples):
            for name, tensor in sample.tensors.items():
                shape = tuple(tensor.shape)
                if position == 0:
                    options = {"chunks": (1, *shape), "maxshape": (None, *shape), "compression": compression}
                    file.create_dataset(name, (0, *shape), tensor.numpy().dtype, **options)
                file[name].resize(position + 1, axis=0)
                file[name][position] = tensor.numpy()


def _read_h5(folder: Path, position: int) -> dict[str, Tensor]:
    h5py = importlib.import_module("h5py")
    file = _opened(folder, lambda folder: h5py.File(folder / "all.h5", rdcc_nbytes=0))
    return {name: torch.from_numpy(file[name][position]) for name in file}


def _packed(sample: Sample) -> dict[str, bytes]:
    return {name: zstd.compress(tensor.numpy(), 1) for name, tensor in sample.tensors.items()}


def _unpacked(values: bytes, scale: bytes, shape: Sequence[int]) -> dict[str, Tensor]:
    codes = np.frombuffer(zstd.decompress(values), np.uint8).reshape(shape)
    return {"values": torch.from_numpy(codes), "scale": torch.from_numpy(np.frombuffer(zstd.decompress(scale), "<f4"))}


def _write_lmdb(folder: Path, samples: Iterable[Sample]) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(str(folder), map_size=2**40) as database:
        for position, sample in enumerate(samples):
            with database.begin(write=True) as transaction:
                transaction.put(b"shape", np.array(sample.values.shape, "<i8").tobytes())
                for name, data in _packed(sample).items():
                    transaction.put(f"{name}{position}".encode(), data)


def _read_lmdb(folder: Path, position: int) -> dict[str, Tensor]:
    lmdb = importlib.import_module("lmdb")
    database = _opened(folder, lambda folder: lmdb.open(str(folder), readonly=True, lock=False, readahead=False))
    with database.begin(buffers=True) as transaction:
        shape = np.frombuffer(transaction.get(b"shape"), "<i8").tolist()
        values, scale = (transaction.get(f"{name}{position}".encode()) for name in ("values", "scale"))
        return _unpacked(values, scale, shape)


def _write_webdataset(folder: Path, samples: Iterable[Sample]) -> None:
    webdataset = importlib.import_module("webdataset")
    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=8, verbose=0) as writer:
        for position, sample in enumerate(samples):
            packed = {f"{name}.zst": data for name, data in _packed(sample).items()}
            writer.write({"__key__": f"{position:07}", "shape.json": list(sample.values.shape), **packed})


def _open_webdataset(folder: Path, order: Sequence[int]) -> Iterable[Any]:
    webdataset = importlib.import_module("webdataset")
    files = sorted(map(str, folder.glob("*.tar")))
    dataset = webdataset.WebDataset(files, shardshuffle=False).decode().map(_from_webdataset)
    return loader_of(dataset)


def _from_webdataset(item: dict[str, Any]) -> dict[str, Tensor]:
    return _unpacked(item["values.zst"], item["scale.zst"], item["shape.json"])


def _write_litdata(folder: Path, samples: Iterable[Sample]) -> None:
    writer = importlib.import_module("litdata.streaming.writer")
    cache = writer.BinaryWriter(str(folder), chunk_bytes=2**26, compression="zstd")
    for position, sample in enumerate(samples):
        cache[position] = {name: tensor.clone() for name, tensor in sample.tensors.items()}
    cache.done()
    cache.merge(1)


def _open_litdata(folder: Path, order: Sequence[int]) -> Iterable[Any]:
    litdata = importlib.import_module("litdata")
    dataset = litdata.StreamingDataset(str(folder), cache_dir=str(folder / "cache"), shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def _write_mosaic(folder: Path, samples: Iterable[Sample]) -> None:
    streaming = importlib.import_module("streaming")
    columns = {"values": "ndarray:uint8", "scale": "ndarray:float32"}
    with streaming.MDSWriter(out=str(folder), columns=columns, compression="zstd", size_limit=2**26) as writer:
        for sample in samples:
            writer.write({name: tensor.numpy() for name, tensor in sample.tensors.items()})


def _open_mosaic(folder: Path, order: Sequence[int]) -> Iterable[Any]:
    streaming = importlib.import_module("streaming")
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return loader_of(dataset)


class _Ours(Dataset):
    def __init__(self, path: Path, tokens: Sequence[str]) -> None:
        self.cache, self.tokens = TeacherCache(path), tokens

    def __getitem__(self, positions: Sequence[int]) -> Any:
        return self.cache.read([self.tokens[position] for position in positions], layers=["head"])


def our_batches(store: Path, order: Sequence[int]) -> DataLoader:
    """Our store in a DataLoader; a worker reads a batch at once."""
    cache = TeacherCache(store)
    batches = [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    dataset = _Ours(store, cache.tokens)
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=WORKERS, persistent_workers=True)


def _read_zarr(folder: Path, position: int) -> dict[str, Tensor]:
    group = _opened(folder, lambda folder: zarr.open_group(folder, mode="r"))
    arrays = {"values": group["features/head"], "scale": group["features/head_scale"]}
    return {name: torch.from_numpy(array[position, 0]) for name, array in arrays.items()}


def _read_tensorstore(folder: Path, position: int) -> dict[str, Tensor]:
    arrays = _opened(folder, _open_tensorstore)
    futures = {name: array[position, 0].read() for name, array in arrays.items()}
    return {name: torch.from_numpy(future.result()) for name, future in futures.items()}


def _open_tensorstore(folder: Path) -> dict[str, Any]:
    tensorstore = importlib.import_module("tensorstore")
    arrays = {"values": "features/head", "scale": "features/head_scale"}
    specs = {name: {"driver": "zarr3", "kvstore": f"file://{folder / array}"} for name, array in arrays.items()}
    return {name: tensorstore.open(spec).result() for name, spec in specs.items()}


def same_store() -> Iterator[Peer]:
    """Other readers of our store."""
    eight = partial(Peer, dtype=torch.uint8, compressed=True)
    yield eight(name="zarr-python, our store", batches=_indexed(_read_zarr))
    yield eight(name="tensorstore, our store", batches=_indexed(_read_tensorstore), package="tensorstore")


def other_formats() -> Iterator[Peer]:
    """Other formats, those of the same fidelity first."""
    eight = partial(Peer, dtype=torch.uint8, compressed=True)
    yield eight(name="h5py, gzip", write=partial(_write_h5, "gzip"), batches=_indexed(_read_h5), package="h5py")
    yield eight(name="h5py, lzf", write=partial(_write_h5, "lzf"), batches=_indexed(_read_h5), package="h5py")
    yield eight(name="LMDB, zstd", write=_write_lmdb, batches=_indexed(_read_lmdb), package="lmdb")
    yield eight(name="webdataset, zstd", write=_write_webdataset, batches=_open_webdataset, package="webdataset")
    yield eight(name="litdata, zstd", write=_write_litdata, batches=_open_litdata, package="litdata")
    yield eight(name="mosaicml-streaming, zstd", write=_write_mosaic, batches=_open_mosaic, package="streaming")
    npy = partial(Peer, write=partial(_write_files, _save_npy), batches=_indexed(_read_npy))
    half = partial(Peer, dtype=torch.float16)
    yield npy(name="npy", dtype=torch.float32)
    yield npy(name="npy", dtype=torch.float16)
    yield half(name="torch.save", write=partial(_write_files, torch.save), batches=_indexed(_read_torch))
    save = partial(_write_files, safetensors.torch.save_file)
    yield half(name="safetensors", write=save, batches=_indexed(_read_safetensors))
