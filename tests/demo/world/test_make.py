"""The driver: whole worlds or none, the same bytes however they are made."""

import hashlib
import json
from pathlib import Path

import pytest

from cache.errors import DataError
from demo.world.config import WorldConfig
from demo.world.make import make_world

MINUTE = WorldConfig(
    train_scenes=1,
    val_scenes=1,
    key_frames=2,
    past_sweeps=1,
    image_size=(36, 64),
    objects=12,
    each_class=1,
    lidar_azimuths=40,
)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("minute") / "world"
    assert make_world(out, MINUTE, processes=1)
    return out


def test_two_processes_make_the_same_bytes_as_one(minute: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "two", MINUTE, processes=2)
    assert digests(tmp_path / "two") == digests(minute)


def test_another_seed_makes_other_images_and_points(minute: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "other", MINUTE.model_copy(update={"seed": 1}), processes=1)
    ours, theirs = digests(minute), digests(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    same = {name for name in ours if ours[name] == theirs[name]}
    assert not [name for name in same if name.endswith((".jpg", ".bin"))]


def test_what_lies_in_a_world(minute: Path) -> None:
    names = digests(minute)
    assert sum(name.endswith(".jpg") for name in names) == 2 * 2 * 6
    assert sum(name.startswith("samples/LIDAR_TOP") for name in names) == 2 * 2
    assert sum(name.startswith("sweeps/LIDAR_TOP") for name in names) == 2 * 2
    assert sum(name.startswith("v1.0-mini/") for name in names) == 13
    assert json.loads((minute / "world.json").read_text())["world"]["image_size"] == [36, 64]


def test_the_same_world_is_not_made_again(minute: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in minute.rglob("*")}
    assert not make_world(minute, MINUTE, processes=1)
    assert before == {path: path.stat().st_mtime_ns for path in minute.rglob("*")}


def test_an_empty_folder_is_filled_and_progress_counts_key_frames(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    calls: list[tuple[int, int]] = []
    assert make_world(tmp_path / "world", MINUTE, processes=1, progress=lambda *call: calls.append(call))
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_another_world_is_kept(minute: Path) -> None:
    before = digests(minute)
    with pytest.raises(DataError) as caught:
        make_world(minute, MINUTE.model_copy(update={"key_frames": 3, "seed": 7}), processes=1)
    assert str(caught.value) == (
        f"there is another world ({minute}); got world.seed 0 instead of 7, world.key_frames 2 instead of 3. "
        "Choose another folder, or remove this one; nothing was overwritten."
    )
    assert digests(minute) == before


@pytest.mark.parametrize("content", ["notes", "[1, 2]", "{"])
def test_a_folder_of_something_else_is_kept(tmp_path: Path, content: str) -> None:
    name = "notes.txt" if content == "notes" else "world.json"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(content)
    with pytest.raises(DataError, match=r"something else where the world should go .*no world.json that can be read"):
        make_world(tmp_path / "mine", MINUTE, processes=1)
    assert (tmp_path / "mine" / name).read_text() == content


def test_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="got a file; expected no folder, an empty one, or the same world"):
        make_world(tmp_path / "file", MINUTE, processes=1)


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"the world cannot be written .*Not a directory"):
        make_world(tmp_path / "file" / "world", MINUTE, processes=1)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_world_leaves_nothing(tmp_path: Path, processes: int) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "world", MINUTE, processes=processes, progress=interrupt)
    assert not list(tmp_path.iterdir())
