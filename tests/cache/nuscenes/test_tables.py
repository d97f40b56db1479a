"""Tables read in parts: the same rows wherever the file is cut."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.errors import DataError
from cache.nuscenes import tables
from cache.nuscenes.tables import NamedRow, read_chunks, read_table

ROWS = [
    {"token": f"t{i}", "name": name, "description": text, "nested": [{"a": 1}, {"b": [{}, {}]}]}
    for i, (name, text) in enumerate([("}, {", "}]"), ('"}, {"', "é, 漢"), ("plain", "\\"), ("[{", "}  ,\n {")] * 5)
]


@pytest.mark.parametrize("size", [1, 7, 64, 100, 333, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_do_not_depend_on_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, indent: int | None
) -> None:
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(tables, "CHUNK_BYTES", size)
    read: list[int] = []
    rows = list(read_table(path, NamedRow, read.append))
    assert [(row.token, row.name) for row in rows] == [(row["token"], row["name"]) for row in ROWS]
    assert sum(read) == path.stat().st_size


def test_parts_are_as_large_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(tables, "CHUNK_BYTES", 400)
    assert len(list(read_chunks(path, NamedRow))) > 4


@pytest.mark.parametrize("size", [64, 1 << 20])
@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda text: text[:-30], "DecodeError: Input data was truncated"),
        (lambda text: text.replace('"name": "plain"', '"name": 5', 1), "ValidationError: Expected `str`, got `int`"),
        (lambda text: text.replace('"t7"', "t7"), "DecodeError: JSON is malformed"),
        (lambda text: "", "DecodeError: Input data was truncated"),
        (lambda text: '{"token": 1}', "ValidationError: Expected `array`, got `object`"),
        (lambda text: "[1]", "ValidationError: Expected `object`, got `int`"),
    ],
)
def test_a_broken_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, damage: Callable[[str], str], got: str
) -> None:
    path = tmp_path / "scene.json"
    path.write_text(damage(json.dumps(ROWS)))
    monkeypatch.setattr(tables, "CHUNK_BYTES", size)
    with pytest.raises(DataError, match=rf"a nuScenes table cannot be read \({path}\); got {got}") as caught:
        list(read_table(path, NamedRow))
    assert "counted from row" in str(caught.value)


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.json"
    path.write_bytes(b'[{"token": "\xff", "name": ""}]')
    with pytest.raises(DataError, match=r"a nuScenes table cannot be read"):
        list(read_table(path, NamedRow))
