"""Tables with one field replaced or removed: read, or refused with a DataError; never another exception."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.errors import OfflineDistillError
from cache.nuscenes import index
from cache.nuscenes.compile import compile_tables
from cache.nuscenes.completeness import require_listed
from cache.nuscenes.counts import count_boxes
from cache.nuscenes.frames import Frames
from student.evaluation.truth import require_truth
from tests.factories.tables import make_tables, write_tables

TABLES = make_tables()
FIELDS = [
    (table, row, field) for table, rows in TABLES.items() for row in range(min(2, len(rows))) for field in rows[row]
]
PLAIN = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    10**30,
    -(10**20),
    2**31,
    1e308,
    -1e308,
    "",
    "x",
    "é",
    "\u0000",
    "first",
    {},
    {"a": 1},
]
LISTS = [[], [1], [0, 0, 0], [0, 0, 0, 0], [1e308] * 3, [1e308] * 4, ["x"], ["x", "x"], [[1, 0, 0]] * 3]
VALUES = st.sampled_from(PLAIN) | st.sampled_from(LISTS)
REMOVED = "(removed)"


@settings(max_examples=150, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(FIELDS), value=VALUES | st.just(REMOVED))
def test_any_value_in_any_field(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, int, str], value: Any
) -> None:
    table, row, field = place
    tables = copy.deepcopy(TABLES)
    if value == REMOVED:
        del tables[table][row][field]
    else:
        tables[table][row][field] = value
    use(write_tables(tmp_path_factory.getbasetemp() / "fields", tables))


@settings(max_examples=60, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    table=st.sampled_from(list(TABLES)),
    text=st.sampled_from(
        ["", "[", "{}", "null", "[null]", "[1]", "[{}]", "[[]]", "[" * 3000, "\u00e9", '[{"token": 1}]']
    )
    | st.text(alphabet='[]{}":,a1 ', max_size=20),
)
def test_any_text_for_a_table(tmp_path_factory: pytest.TempPathFactory, table: str, text: str) -> None:
    root = write_tables(tmp_path_factory.getbasetemp() / "texts", TABLES)
    (root / "v1.0-mini" / f"{table}.json").write_text(text, encoding="utf-8")
    use(root)


def use(root: Path) -> None:
    """What a training and an evaluation do with tables before their first frame, and the frames."""
    with pytest.MonkeyPatch.context() as patch:
        # Kept in memory: the file system's part of it is tested elsewhere, and takes most of the time.
        patch.setattr(index, "open_index", lambda *_: None)
        try:
            columns, names = compile_tables(root / "v1.0-mini")
            patch.setattr(Frames, "_index", lambda _: index.TableIndex(columns=columns, names=names))
            frames = Frames(root=root, version="v1.0-mini", splits=("all",))
            for token in frames.tokens:  # first: while testing, beartype looks into the frames of an argument
                assert frames[token].token == token
            require_listed(frames)
            count_boxes(frames)
            require_truth(frames)
        except OfflineDistillError as error:
            assert "\n" not in str(error)


def test_the_tables_themselves_pass(tmp_path: Path) -> None:
    root = write_tables(tmp_path, json.loads(json.dumps(TABLES)))
    columns, names = compile_tables(root / "v1.0-mini")
    assert len(columns.sample_token) == 2
    assert names.scenes == ("scene-0061",)
