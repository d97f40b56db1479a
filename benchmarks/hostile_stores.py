"""Stores made by hand to hurt: `cli verify` and `cli inspect` of each, in a process of its own."""

import hashlib
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import numcodecs.zstd as zstd
import numpy as np

import cli
from cache.config import differing
from cache.errors import OfflineDistillError
from cache.nuscenes.index_files import META, IndexFiles
from cache.spec import CacheSpec
from cache.store.documents import ArrayFile, sign
from cache.store.format import with_checksum
from tests.factories.carried import make_files, make_index
from tests.factories.stores import make_store, make_tokens

LONGEST_S = 15
MOST_BYTES = 10**9
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"

Edit = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class HandMade:
    """What became of the commands."""

    stores: int
    commands: int
    slowest_s: float
    largest_mb: float
    """Of memory that a command took."""
    slow: tuple[str, ...]
    large: tuple[str, ...]
    tracebacks: tuple[str, ...]
    bugs: tuple[str, ...]
    control_characters: tuple[str, ...]
    written_outside: tuple[str, ...]

    @property
    def broken(self) -> int:
        kinds = self.slow, self.large, self.tracebacks, self.bugs, self.control_characters, self.written_outside
        return sum(map(len, kinds))


def try_stores(folder: Path) -> HandMade:
    """Make each store, run the commands, and look at what they print and take."""
    folder.mkdir()
    sound = make_store(folder / "sound.zarr", frames=make_files(make_tokens(10)))
    found: dict[str, list[str]] = {name: [] for name in ("slow", "large", "traceback", "bug", "control", "outside")}
    trials: list[Trial] = []
    stores = hand_made()
    for name, make in stores.items():
        work = folder / "work"
        work.mkdir()
        path = shutil.copytree(sound, work / "teacher.zarr")
        make(path)
        token = next(iter(_tokens(path)), "0000")
        for arguments in (["verify", str(path)], ["inspect", str(path)], ["inspect", str(path), token]):
            tried = _try(arguments, work)
            trials.append(tried)
            for problem in tried.problems:
                found[problem].append(f"{name}: {arguments[0]}")
        allowed = {"teacher.zarr", "out", *(file.name for file in work.glob("*.png"))}
        if {file.name for file in work.iterdir()} != allowed | {"out"} or list(folder.glob("*.png")):
            found["outside"].append(name)
        shutil.rmtree(work)
    return HandMade(
        stores=len(stores),
        commands=len(trials),
        slowest_s=round(max(tried.seconds for tried in trials), 1),
        largest_mb=round(max(tried.peak_bytes for tried in trials) / 1e6),
        slow=tuple(found["slow"]),
        large=tuple(found["large"]),
        tracebacks=tuple(found["traceback"]),
        bugs=tuple(found["bug"]),
        control_characters=tuple(found["control"]),
        written_outside=tuple(found["outside"]),
    )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A command that ended, or was ended."""

    problems: tuple[str, ...]
    seconds: float
    peak_bytes: int


def _try(arguments: list[str], work: Path) -> Trial:
    output = work / "out"
    process = get_context("fork").Process(target=_command, args=(arguments, output))
    began = time.monotonic()
    process.start()
    process.join(LONGEST_S)
    problems = []
    if process.is_alive():
        process.kill()
        problems.append("slow")
    process.join()
    seconds = time.monotonic() - began
    text = output.read_text(encoding="utf-8", errors="surrogateescape")
    peak = max(map(int, re.findall(r"\npeak (\d+)\n", text)), default=0)
    if peak > MOST_BYTES:
        problems.append("large")
    if process.exitcode not in (0, 1) and seconds < LONGEST_S:
        problems.append("traceback")  # killed by a signal, or by an error that nothing mapped
    if "Traceback" in text:
        problems.append("traceback")
    if "this is a bug" in text:
        problems.append("bug")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text):
        problems.append("control")
    return Trial(problems=tuple(problems), seconds=seconds, peak_bytes=peak)


def _command(arguments: list[str], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.chdir(output.parent)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.argv = ["cli", *arguments]
    try:
        cli.main()
    finally:
        sys.stdout.flush()
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        os.write(descriptor, f"\npeak {peak}\n".encode())


def _tokens(path: Path) -> list[str]:
    """The first token of a store, whatever it is."""
    file = path / "token/c.0.0"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > 1000:
        return []
    data = file.read_bytes()
    return [data[: (len(data) - 4) // 10].rstrip(b"\0").decode(errors="replace")]


def hand_made() -> dict[str, Callable[[Path], object]]:
    """By name: functions that make a sound store hostile."""
    stores: dict[str, Callable[[Path], object]] = {}
    specs: dict[str, tuple[str, Any]] = {
        "10^30 samples": ("data.samples", 10**30),
        "10^7 samples": ("data.samples", 10**7),
        "-1 samples": ("data.samples", -1),
        "no sample": ("data.samples", 0),
        "half a sample": ("data.samples", 10.5),
        "10^30 channels": ("layers.0.channels", 10**30),
        "10^6 channels": ("layers.0.channels", 10**6),
        "-4 channels": ("layers.0.channels", -4),
        "a range of 1e308": ("canvas_grid.x_range_m", [-1e308, 1e308]),
        "a range backwards": ("canvas_grid.x_range_m", [8, -8]),
        "cells of 1e-300 m": ("canvas_grid.cell_m", [1e-300, 1]),
        "cells of 0 m": ("canvas_grid.cell_m", [0, 1]),
        "16,384 x 16,384 cells": ("heatmap_grid", {"x_range_m": [0, 16384], "y_range_m": [0, 16384], "cell_m": [1, 1]}),
        "a head map of -1 channels": ("head_maps.reg", -1),
        "a head map of 10^30 channels": ("head_maps.reg", 10**30),
        "a head map named ../../x": ("head_maps", {"../../x": 2}),
        "a layer named ../../x": ("layers.0.name", "../../x"),
        "a layer named /etc": ("layers.0.name", "/etc"),
        "a layer with escapes": ("layers.0.name", f"head{ESCAPE}"),
        "two layers of one name": ("layers.1.name", "head"),
        "a layer named as another's scale": ("layers.1.name", "head_scale"),
        "a teacher with escapes": ("teacher.name", f"small{ESCAPE}"),
        "classes with escapes": ("teacher.tasks", [["car"], [f"pedestrian{ESCAPE}", "traffic_cone"]]),
        "splits with escapes": ("data.splits", [f"mini_train{ESCAPE}"]),
        "a class with half a surrogate pair": ("teacher.tasks", [["car"], ["\ud800", "traffic_cone"]]),
        "100,000 views": ("views", ["canonical", *(f"drawn{k}" for k in range(10**5))]),
        "a view of 10^5 digits": ("views", ["canonical", "drawn" + "9" * 10**5]),
        "room for 10^9 points": ("depth", {"cameras": ["a"], "room": 10**9, "pixel_step": 1.0}),
        "a codec of 400 bits": ("layers.0.codec.bits", 400),
    }
    for name, (place, value) in specs.items():
        stores[name] = partial(_edit_root, partial(_set, f"attributes.spec.{place}", value))
    roots: dict[str, tuple[str, Any]] = {
        "64 samples a shard": ("attributes.layout.samples_per_shard", 64),
        "10^30 samples a shard": ("attributes.layout.samples_per_shard", 10**30),
        "version 99": ("attributes.format_version", 99),
        "version [2]": ("attributes.format_version", [2]),
        "version 1 with records of version 2": ("attributes.format_version", 1),
        "attributes in a list": ("attributes", []),
        "no metadata of arrays": ("consolidated_metadata", None),
        "metadata of /etc": ("consolidated_metadata.metadata", {"../../../../etc": {}}),
        "metadata that is a number": ("consolidated_metadata.metadata", 5),
        "software with escapes": ("attributes.software", {f"torch{ESCAPE}": ESCAPE}),
        "a report of 1e400": ("attributes.codec_report", {"head": {"sqnr_db": 1e308 * 10}}),
        "not sealed": ("attributes.sealed", False),
        "a foreign fingerprint": ("attributes.fingerprint", "f" * 64),
        "small arrays that are not": ("attributes.small_arrays", {"x": {"size": 1, "crc32c": 2, "sha256": "y"}}),
    }
    for name, (place, value) in roots.items():
        stores[name] = partial(_edit_root, partial(_set, place, value))
    deep = b"[" * 200_000 + b"]" * 200_000
    for key in ("zarr.json", "manifest/1.json", "heatmap/zarr.json"):
        stores[f"{key}: deep"] = partial(_write, key, deep)
        stores[f"{key}: deep in an object"] = partial(_write, key, b'{"attributes":' * 50_000 + b"1" + b"}" * 50_000)
        stores[f"{key}: a number of 10^5 digits"] = partial(_write, key, b'{"shard": ' + b"9" * 10**5 + b"}")
        stores[f"{key}: a list"] = partial(_write, key, b"[1, 2]")
        stores[f"{key}: no text"] = partial(_write, key, bytes(range(256)))
        stores[f"{key}: NaN"] = partial(_write, key, b'{"attributes": {"a": NaN}}')
    records: dict[str, tuple[str, Any]] = {
        "a record without arrays": ("files", {}),
        "a record of 10^30 bytes": ("files.heatmap.bytes", 10**30),
        "a record of -1 bytes": ("files.heatmap.bytes", -1),
        "a record of 2^47 bytes": ("files.heatmap.bytes", 2**47),
        "a record of other digits": ("files.heatmap.chunks_crc32c", "xyz"),
        "a record of too few checksums": ("files.heatmap.chunks_crc32c", "00000000"),
        "a record of a shard named true": ("shard", True),
        "a record of an infinite error": ("distortion.head.noise", 1e308 * 10),
    }
    for name, (place, value) in records.items():
        stores[name] = partial(_edit, "manifest/1.json", partial(_set, place, value))
    files = "zarr.json", "manifest/1.json", "token/c.0.0", "heatmap/c.1.0.0.0.0", "teacher_head.safetensors"
    for key in (*files, "heatmap/zarr.json", "frames/index.json", "frames/pose.npy"):
        stores[f"{key}: a pipe"] = partial(_pipe, key)
        stores[f"{key}: a link to /dev/zero"] = partial(_link, key, "/dev/zero")
        stores[f"{key}: a folder"] = partial(_folder, key)
        stores[f"{key}: 1 TB of nothing"] = partial(_sparse, key)
    for name in ("features", "manifest", "token", "heatmap", "frames"):
        stores[f"{name}: a link to /"] = partial(_link, name, "/")
    values = np.zeros(3 * 6 * 8, np.uint8)
    stores["a chunk of fewer bytes"] = partial(_first_chunk, zstd.compress(values[:40], 1))
    stores["a chunk of 4 GB of zeros"] = partial(_first_chunk, _bomb(4))
    stores["a chunk that does not say its size"] = partial(_first_chunk, b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00")
    stores["a chunk that is no frame"] = partial(_first_chunk, b"not a frame")
    for offset, size in ((0, 2**62), (2**62, 100), (-5, 100), (10, -7), (0, 2**40)):
        stores[f"an index of {size} bytes at {offset}"] = partial(_first_entry, offset, size)
    for name, token in {
        "that leads out": b"../../../x",
        "with escapes": ESCAPE.encode(),
        "that is no text": b"\xff\xfe\xff",
        "that is markup": b"[red]<b>",
    }.items():
        stores[f"a token {name}"] = partial(_token, token)
    stores["an order out of range"] = partial(_small, "token_order", np.full(10, 2**60, "<i8").tobytes())
    stores["matrices of NaN"] = partial(_small, "view_matrix", np.full((1, 4, 4), np.nan, "<f4").tobytes())
    stores |= {f"frames: {name}": partial(_frames, files) for name, files in _hostile_frames().items()}
    for name, data in {
        "of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
        "that are none": b"PK\x03\x04",
        "of overlapping tensors": _overlapping(),
        "that are empty": b"",
    }.items():
        stores[f"head weights {name}"] = partial(_head_weights, data)
    return stores


def _set(place: str, value: Any, document: Any) -> None:
    *parents, last = place.split(".")
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    document[last] = value


def _edit(key: str, edit: Edit, path: Path) -> None:
    """Edit a document and sign it again."""
    document = json.loads((path / key).read_text())
    document.get("attributes", document).pop("sha256")
    edit(document)
    if not isinstance(document.get("attributes", {}), dict):
        (path / key).write_text(json.dumps(document))
        return
    (path / key).write_bytes(sign(document))


def _edit_root(edit: Edit, path: Path) -> None:
    """Edit the root, and make its fingerprint that of the spec wherever there is one."""

    def whole(document: dict[str, Any]) -> None:
        before = json.loads(json.dumps(document))
        edit(document)
        if any(place.startswith("attributes.spec") for place, *_ in differing(before, document)):
            try:
                document["attributes"]["fingerprint"] = CacheSpec.parse(document["attributes"]["spec"], "").fingerprint
            except OfflineDistillError:
                return

    _edit("zarr.json", whole, path)


def _write(key: str, data: bytes, path: Path) -> None:
    (path / key).write_bytes(data)


def _pipe(key: str, path: Path) -> None:
    (path / key).unlink()
    os.mkfifo(path / key)


def _link(key: str, target: str, path: Path) -> None:
    shutil.rmtree(path / key) if (path / key).is_dir() else (path / key).unlink()
    (path / key).symlink_to(target)


def _folder(key: str, path: Path) -> None:
    (path / key).unlink()
    (path / key).mkdir()


def _sparse(key: str, path: Path) -> None:
    os.truncate(path / key, 10**12)


def _bomb(gigabytes: int) -> bytes:
    """A frame that says it holds one chunk, in blocks of the same byte (RFC 8878, 3.1.1.2) that hold gigabytes."""
    header = b"\x28\xb5\x2f\xfd\xe0" + (3 * 6 * 8).to_bytes(8, "little")
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return header + block * (gigabytes * 8 * 1024)


def _first_chunk(frame: bytes, path: Path) -> None:
    """Put a frame before the first shard of the heatmap, with an index, a record and checksums that fit it."""
    chunk = with_checksum(frame)
    file = path / "heatmap/c.0.0.0.0.0"
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<i8").reshape(-1, 2).copy()
    rest = data[index[0, 1] : -68]
    index[1:, 0] += len(chunk) - index[0, 1]
    index[0] = 0, len(chunk)
    _commit(path, chunk + rest, index, int.from_bytes(chunk[-4:], "little"))


def _first_entry(offset: int, size: int, path: Path) -> None:
    data = (path / "heatmap/c.0.0.0.0.0").read_bytes()
    index = np.frombuffer(data[-68:-4], "<i8").reshape(-1, 2).copy()
    index[0] = offset, size
    _commit(path, data[:-68], index, None)


def _commit(path: Path, body: bytes, index: np.ndarray, first_crc32c: int | None) -> None:
    packed = with_checksum(index.astype("<i8").tobytes())
    (path / "heatmap/c.0.0.0.0.0").write_bytes(body + packed)

    def edit(record: dict[str, Any]) -> None:
        file = record["files"]["heatmap"]
        file["bytes"], file["index_crc32c"] = len(body) + len(packed), int.from_bytes(packed[-4:], "little")
        if first_crc32c is not None:
            file["chunks_crc32c"] = f"{first_crc32c:08x}" + file["chunks_crc32c"][8:]

    _edit("manifest/0.json", edit, path)


def _token(token: bytes, path: Path) -> None:
    names = np.array([token, *(f"{number:04}".encode() for number in range(9))])
    _small("token_order", np.argsort(names, kind="stable").astype("<i8").tobytes(), path)
    _small("token", names.tobytes(), path)


def _small(name: str, values: bytes, path: Path) -> None:
    """A small array that the root names as its own."""
    (file,) = (path / name).glob("c.*")
    data = with_checksum(values)
    file.write_bytes(data)
    own = ArrayFile.of(data).model_dump()
    _edit("zarr.json", partial(_set, f"attributes.small_arrays.{name}", own), path)


def _hostile_frames() -> dict[str, dict[str, bytes]]:
    """Files of frames that a record describes and the root names."""
    index = make_index(make_tokens(10))
    rows = np.full(20, 2**31 - 1, np.int32)
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    claims = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 7), }".ljust(117) + "\n"
    scenes = msgspec.structs.replace(index.names, scenes=(f"scene{ESCAPE}",))
    return {
        "a column that is pickled": {"pose.npy": _npy(np.array([{}], dtype=object))},
        "a column of 10^13 rows": {"pose.npy": header + claims.encode()},
        "a header that is code": {"pose.npy": header + b"__import__('os').abort()".ljust(117) + b"\n"},
        "a column of another type": {"pose.npy": _npy(np.array(["a", "b"]))},
        "a column of fewer rows": {"pose.npy": _npy(index.columns.pose[:3])},
        "a column of nothing": {"pose.npy": b""},
        "rows that lead out": {"box_next.npy": _npy(rows)},
        "poses of NaN": {"pose.npy": _npy(np.full((10, 7), np.nan))},
        "tokens that are no text": {"sample_token.npy": _npy(np.full(10, b"\xff\xfe"))},
        "scenes with escapes": {META: IndexFiles(index.columns, scenes, "v1.0-mini")[META]},
        "a record of another version": {META: IndexFiles(index.columns, index.names, f"v{ESCAPE}")[META]},
        "a record that is deep": {META: b"[" * 100_000},
    }


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _frames(files: dict[str, bytes], path: Path) -> None:
    """Write files of the frames, describe them in the record, and name the record in the root."""
    for name, data in files.items():
        (path / "frames" / name).write_bytes(data)
    text = (path / "frames" / META).read_bytes().rpartition(b"\n")[0]
    if text:
        record = json.loads(text)
        described = {n.removesuffix(".npy"): (len(d), google_crc32c.value(d)) for n, d in files.items() if n != META}
        record["files"] |= described
        text = json.dumps(record).encode()
        (path / "frames" / META).write_bytes(text + f"\n{google_crc32c.value(text)}".encode())
    digest = hashlib.sha256((path / "frames" / META).read_bytes()).hexdigest()
    _edit("zarr.json", partial(_set, "attributes.frames_sha256", digest), path)


def _overlapping() -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": tensor, "b": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def _head_weights(data: bytes, path: Path) -> None:
    (path / "teacher_head.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _edit("zarr.json", partial(_set, "attributes.head_weights_sha256", digest), path)
