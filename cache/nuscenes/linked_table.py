"""A table's rows by token, and their references to rows of other tables as row numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Generic

import numpy as np
from jaxtyping import Int

from cache.errors import DataError
from cache.nuscenes.columns import NONE
from cache.nuscenes.tables import UNPACK, AnyRow, DataRow, SampleRow


@dataclass(frozen=True, kw_only=True)
class LinkedTable(Generic[AnyRow]):
    """Some or all rows of a table."""

    path: Path
    rows: Sequence[AnyRow]

    @cached_property
    def at(self) -> dict[str, int]:
        """Rows by token."""
        found = {row.token: i for i, row in enumerate(self.rows)}
        if len(found) < len(self.rows):
            twice = next(row.token for i, row in enumerate(self.rows) if found[row.token] != i)
            raise DataError("a nuScenes table holds a token twice", where=self.path, got=twice, cure=UNPACK)
        return found

    def link(self, field: str, target: "LinkedTable", optional: bool = False) -> Int[np.ndarray, "rows"]:
        """The row of `target` that each row's field names; NONE where an optional one is empty."""
        tokens, at = list(map(attrgetter(field), self.rows)), target.at
        if optional:
            at = at | {"": NONE}
        try:
            return np.fromiter(map(at.__getitem__, tokens), np.int32, len(tokens))
        except KeyError:
            i = next(i for i, token in enumerate(tokens) if token not in at)
            raise dangling(self.path, self.rows[i].token, field, tokens[i], target.path.stem) from None


def times_us(table: LinkedTable[SampleRow] | LinkedTable[DataRow]) -> Int[np.ndarray, "rows"]:
    """The timestamps of rows.

    Raises:
        DataError: one is not a whole number.
    """
    times = np.array([row.timestamp for row in table.rows] or np.zeros(0, np.int64))
    if times.dtype != np.int64:
        fraction = next((time for time in times.tolist() if time != int(time)), None)
        if fraction is not None:
            raise wrong_times(table.path, repr(fraction))
    return times.astype(np.int64)


def dangling(path: Path, token: str, field: str, named: str, target: str) -> DataError:
    """A reference to a record that is not there."""
    return DataError(
        "a nuScenes table refers to a record that is not there",
        where=path,
        got=f"{field} {named!r} in record {token}",
        expected=f"a record of {target}.json",
        cure=UNPACK,
    )


def wrong_times(path: Path, got: str) -> DataError:
    """Times in another unit."""
    return DataError(
        "times are not in microseconds",
        where=path,
        got=got,
        expected="whole microseconds, such as 1533151603547590",
        cure="Write `timestamp` of sample and sample_data in microseconds",
    )
