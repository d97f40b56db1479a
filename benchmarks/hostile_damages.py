"""Damages of a store whose parts are whole but not its own, or not in their place, and what finds and mends them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.crash import contents, read_everything
from cache.dumping.run import dump
from cache.dumping.verify import repair, verify
from cache.errors import OfflineDistillError, StoreError
from cache.store.documents import sign
from cache.store.format import with_checksum
from cache.store.layout import sample_arrays
from cache.store.reader import TeacherCache
from tests.factories.carried import CarriedFrames
from tests.factories.stores import SmallTeacher, make_config

Damage = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Damages:
    """What became of the damages."""

    tried: int
    found_by_reader: int
    found_by_verify: int
    silent: tuple[str, ...]
    """The reader returned something else, and neither it nor `verify` said so; or `verify` found nothing."""
    mended: int
    refused: tuple[str, ...]
    """The repair said why it cannot."""
    not_mended: tuple[str, ...]

    @property
    def broken(self) -> int:
        return len(self.silent) + len(self.not_mended)


def apply_damages(folder: Path) -> Damages:
    """Apply each damage to a copy of a store."""
    folder.mkdir()
    frames = CarriedFrames(root=folder / "points", count=12)
    stores = {name: folder / f"{name}.zarr" for name in ("own", "other", "fewer")}
    dump(make_config(), frames, SmallTeacher(), stores["own"])
    dump(make_config(), replace(frames, seed=1), SmallTeacher(seed=1), stores["other"])
    dump(make_config(), replace(frames, count=11), SmallTeacher(), stores["fewer"])
    expected, whole = read_everything(stores["own"]), contents(stores["own"])
    by_reader, by_verify, mended = 0, 0, 0
    silent, refused, not_mended = [], [], []
    damages = all_damages(stores["own"], stores["other"], stores["fewer"])
    for name, damage in damages.items():
        path = shutil.copytree(stores["own"], folder / "damaged.zarr")
        damage(path)
        noticed, found = _reader_notices(path, expected), _verify_finds(path)
        by_reader, by_verify = by_reader + (noticed is True), by_verify + found
        if noticed is None or not found:
            silent.append(name)
        try:
            report = repair(path, make_config(), frames, SmallTeacher())
            now = {key: data for key, data in contents(path).items() if ".aside" not in key and key in whole}
            if report.damage or now != whole:
                not_mended.append(name)
            else:
                mended += 1
        except OfflineDistillError as error:
            refused.append(f"{name}: {error.what}")
        shutil.rmtree(path)
    return Damages(
        tried=len(damages),
        found_by_reader=by_reader,
        found_by_verify=by_verify,
        silent=tuple(silent),
        mended=mended,
        refused=tuple(refused),
        not_mended=tuple(not_mended),
    )


def _reader_notices(path: Path, expected: list[bytes]) -> bool | None:
    """True where it raises, False where all that it returns is as it was, None where something is not."""
    try:
        return False if read_everything(path) == expected else None
    except StoreError:
        return True


def _verify_finds(path: Path) -> bool:
    try:
        return bool(verify(path).damage)
    except StoreError:
        return True


def all_damages(own: Path, other: Path, fewer: Path) -> dict[str, Damage]:
    """By name; `other` is of another teacher, `fewer` of other tokens."""
    arrays = sample_arrays(TeacherCache(own).spec)
    shards = {name: [array.key(shard) for shard in range(3)] for name, array in arrays.items()}
    damages: dict[str, Damage] = {}
    for name, keys in shards.items():
        damages[f"{name}: shards 0 and 1 exchanged"] = partial(_swap, keys[0], keys[1])
        damages[f"{name}: shard 1 of another teacher"] = partial(_take, other, [keys[1]])
        damages[f"{name}: folder missing"] = partial(_remove, name)
        damages[f"{name}: a folder in a file's place"] = partial(_folder_for, keys[2])
        damages[f"{name}: a file in the folder's place"] = partial(_file_for, name)
        damages[f"{name}: a link to the same bytes elsewhere"] = partial(_link_for, own, keys[0])
    every = list(shards.values())
    for first, second in ((0, 1), (1, 2), (0, 2)):
        pairs = [(keys[first], keys[second]) for keys in every]
        records = (f"manifest/{first}.json", f"manifest/{second}.json")
        damages[f"shards {first} and {second} exchanged with their records"] = partial(_swap_all, [*pairs, records])
        damages[f"records {first} and {second} exchanged"] = partial(_swap, *records)
    for shard in range(3):
        keys = [of[shard] for of in every]
        record = f"manifest/{shard}.json"
        damages[f"shard {shard} of another teacher with its record"] = partial(_take, other, [*keys, record])
        damages[f"shard {shard} of other tokens with its record"] = partial(_take, fewer, [*keys, record])
        damages[f"record {shard} missing"] = partial(_remove, record)
        damages[f"record {shard} of another teacher"] = partial(_take, other, [record])
    for key in ("zarr.json", "teacher_head.safetensors", "token", "token_order", "view_matrix", "manifest", "frames"):
        damages[f"{key} of another teacher"] = partial(_take, other, [key])
        damages[f"{key} of other tokens"] = partial(_take, fewer, [key])
        damages[f"{key} missing"] = partial(_remove, key)
    for name in ("token", "token_order", "view_matrix"):
        damages[f"{name}: its checksum recomputed after a change"] = partial(_change, name)
        damages[f"{name}: rows rotated"] = partial(_rotate, name)
    damages["tokens duplicated"] = _duplicate_tokens
    damages |= _damages_of_frames(own, other)
    damages["a new store copied over, interrupted after its root and weights"] = partial(
        _take, other, ["zarr.json", "teacher_head.safetensors"]
    )
    damages["a sync that looks at sizes only"] = partial(_size_only_sync, other)
    for seed in range(6):
        damages[f"a copy of another teacher's store interrupted at random, {seed}"] = partial(_some_of, other, seed)
    damages["a record without its fingerprint"] = partial(_edit_record, lambda record: record.pop("fingerprint"))
    damages["a record without an array"] = partial(_edit_record, lambda record: record["files"].pop("heatmap"))
    damages["a record with the checksums of rows exchanged"] = partial(_edit_record, _exchange_rows)
    return {name: damage for name, damage in damages.items() if _differs(damage, own)}


def _damages_of_frames(own: Path, other: Path) -> dict[str, Damage]:
    """Of the frames that a store carries."""
    return {
        "frames: a column of another teacher's": partial(_take, other, ["frames/box_center.npy"]),
        "frames: the record of another teacher's": partial(_take, other, ["frames/index.json"]),
        "frames: all columns of another teacher's, not the record": partial(
            _take, other, [f"frames/{file.name}" for file in other.glob("frames/*.npy")]
        ),
        "frames: two columns exchanged": partial(_swap, "frames/box_previous.npy", "frames/box_next.npy"),
        "frames: the rows of a column rotated": _rotate_column,
        "frames: a column missing": partial(_remove, "frames/pose.npy"),
        "frames: the record missing": partial(_remove, "frames/index.json"),
        "frames: a folder in a file's place": partial(_folder_for, "frames/pose.npy"),
        "frames: a file in the folder's place": partial(_file_for, "frames"),
        "frames: a link to the same bytes elsewhere": partial(_link_for, own, "frames/pose.npy"),
        "frames: a link for the folder": partial(_link_for, own, "frames"),
        "frames: a pipe": _pipe_for,
    }


def _differs(damage: Damage, own: Path) -> bool:
    """Whether it changes anything: two shards may be equal."""
    path = shutil.copytree(own, own.with_name("tried.zarr"))
    damage(path)
    changed = contents(path) != contents(own) or any(file.is_symlink() for file in path.rglob("*"))
    shutil.rmtree(path)
    return changed


def _swap(first: str, second: str, path: Path) -> None:
    before = (path / first).read_bytes(), (path / second).read_bytes()
    (path / first).write_bytes(before[1])
    (path / second).write_bytes(before[0])


def _swap_all(pairs: list[tuple[str, str]], path: Path) -> None:
    for first, second in pairs:
        _swap(first, second, path)


def _take(source: Path, keys: list[str], path: Path) -> None:
    for key in keys:
        if (source / key).is_dir():
            shutil.copytree(source / key, path / key, dirs_exist_ok=True)
        else:
            shutil.copy(source / key, path / key)


def _remove(key: str, path: Path) -> None:
    shutil.rmtree(path / key) if (path / key).is_dir() else (path / key).unlink()


def _folder_for(key: str, path: Path) -> None:
    (path / key).unlink()
    (path / key).mkdir()


def _file_for(key: str, path: Path) -> None:
    shutil.rmtree(path / key)
    (path / key).write_text("a file")


def _link_for(own: Path, key: str, path: Path) -> None:
    _remove(key, path)
    (path / key).symlink_to(own / key)


def _pipe_for(path: Path) -> None:
    (path / "frames/pose.npy").unlink()
    os.mkfifo(path / "frames/pose.npy")


def _rotate_column(path: Path) -> None:
    file = path / "frames/box_center.npy"
    np.save(file, np.roll(np.load(file), 1, axis=0))


def _small(name: str, path: Path) -> tuple[Path, np.ndarray]:
    """The file of a small array, and its values as rows of bytes."""
    (file,) = (path / name).glob("c.*")
    values = np.frombuffer(file.read_bytes()[:-4], np.uint8)
    rows = 1 if name == "view_matrix" else TeacherCache(path).spec.data.samples
    return file, values.reshape(rows, -1).copy()


def _change(name: str, path: Path) -> None:
    file, values = _small(name, path)
    changed = (2 * values.view("<f4")).tobytes() if name == "view_matrix" else values[::-1].tobytes()
    file.write_bytes(with_checksum(changed))


def _rotate(name: str, path: Path) -> None:
    file, values = _small(name, path)
    file.write_bytes(
        with_checksum(np.roll(values, 4 if len(values) == 1 else 1, axis=-1 if len(values) == 1 else 0).tobytes())
    )


def _duplicate_tokens(path: Path) -> None:
    file, values = _small("token", path)
    values[1] = values[0]
    file.write_bytes(with_checksum(values.tobytes()))


def _size_only_sync(source: Path, path: Path) -> None:
    """What differs in size is copied, the rest is taken for the same."""
    for key, data in contents(source).items():
        if not (path / key).exists() or (path / key).stat().st_size != len(data):
            (path / key).write_bytes(data)


def _some_of(source: Path, seed: int, path: Path) -> None:
    keys = sorted(contents(source))
    for key in random.Random(seed).sample(keys, len(keys) // 2):
        (path / key).write_bytes((source / key).read_bytes())


def _edit_record(edit: Callable[[dict], object], path: Path) -> None:
    file = path / "manifest/1.json"
    record = json.loads(file.read_text())
    del record["sha256"]
    with suppress(KeyError):
        edit(record)
    file.write_bytes(sign(record))


def _exchange_rows(record: dict) -> None:
    file = record["files"]["features/head"]
    digits = file["chunks_crc32c"]
    file["chunks_crc32c"] = digits[8:16] + digits[:8] + digits[16:]
