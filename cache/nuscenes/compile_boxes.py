"""The columns of boxes: sample_annotation, with the velocities of nuScenes-devkit."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cache.nuscenes.columns import NO_ROW, SEVERAL_ATTRIBUTES
from cache.nuscenes.linked_table import LinkedTable, dangling, times_us, wrong_order
from cache.nuscenes.tables import Advance, AnnotationRow, InstanceRow, NamedRow, Row, SampleRow, read_chunks

LONGEST_STEP_S = 1.5
"""Between two boxes of an object, for its velocity to be known."""


class _Chained(Row):
    prev: str
    next: str


def box_columns(
    path: Path,
    sample: LinkedTable[SampleRow],
    instance: LinkedTable[InstanceRow],
    category: LinkedTable[NamedRow],
    attribute: LinkedTable[NamedRow],
    advance: Advance,
) -> dict[str, np.ndarray]:
    """The columns of `Columns` that are named box_, in its shapes, and sample_boxes: shape (N1,).

    Raises:
        DataError: the table is broken, or refers to a record that is not there.
    """
    of_instance = instance.link("category_token", category)
    links: list[_Chained] = []
    parts: dict[str, list[np.ndarray]] = {}
    for rows in read_chunks(path, AnnotationRow, advance):
        links += [_Chained(token=row.token, prev=row.prev, next=row.next) for row in rows]
        chunk = LinkedTable(path=path, rows=rows)
        read = {
            "sample": chunk.link("sample_token", sample),
            "box_center": np.array([row.translation for row in rows], np.float64).reshape(-1, 3),
            "box_size": np.array([row.size for row in rows], np.float64).reshape(-1, 3),
            "box_rotation": np.array([row.rotation for row in rows], np.float64).reshape(-1, 4),
            "box_points": np.array([(r.num_lidar_pts, r.num_radar_pts) for r in rows], np.int32).reshape(-1, 2),
            "box_category": of_instance[chunk.link("instance_token", instance)].astype(np.int16),
            "box_attribute": _attributes(chunk, attribute),
        }
        for name, column in read.items():
            parts.setdefault(name, []).append(column)
    columns = {name: np.concatenate(columns) for name, columns in parts.items()}
    boxes = LinkedTable(path=path, rows=links)
    before, after = (boxes.link(field, boxes, optional=True) for field in ("prev", "next"))
    of_sample = columns.pop("sample")
    times = times_us(sample)[of_sample]
    for other, sign in ((before, 1), (after, -1)):
        steps = sign * (times - times[other])
        if (wrong := (other != NO_ROW) & (steps <= 0)).any():
            row = int(wrong.argmax())
            raise wrong_order(path, links[row].token, int(steps[row]))
    order = np.argsort(of_sample, kind="stable")
    rank = np.empty_like(before)
    rank[order] = np.arange(len(order), dtype=np.int32)
    columns |= {
        "box_velocity": _velocities(columns["box_center"], times, before, after),
        "box_previous": np.where(before == NO_ROW, NO_ROW, rank[before]),
        "box_next": np.where(after == NO_ROW, NO_ROW, rank[after]),
    }
    counts = np.bincount(of_sample, minlength=len(sample.rows))
    return {
        **{name: column[order] for name, column in columns.items()},
        "sample_boxes": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    }


def _attributes(rows: LinkedTable[AnnotationRow], attribute: LinkedTable[NamedRow]) -> Int[np.ndarray, "rows"]:
    at = attribute.at
    for row in rows.rows:
        for token in row.attribute_tokens:
            if token not in at:
                raise dangling(rows.path, row.token, "attribute_tokens", token, attribute.path.stem)
    named = [row.attribute_tokens for row in rows.rows]
    return np.array(
        [NO_ROW if not t else at[t[0]] if len(t) == 1 else SEVERAL_ATTRIBUTES for t in named], dtype=np.int16
    )


def _velocities(
    centers: Float[np.ndarray, "B 3"],
    times_us: Int[np.ndarray, "B"],
    before: Int[np.ndarray, "B"],
    after: Int[np.ndarray, "B"],
) -> Float[np.ndarray, "B 3"]:
    """As NuScenes.box_velocity, digit by digit: centred differences, over at most 1.5 s to either side."""
    itself = np.arange(len(centers))
    has_before, has_after = before != NO_ROW, after != NO_ROW
    first, last = np.where(has_before, before, itself), np.where(has_after, after, itself)
    seconds = 1e-6 * times_us[last] - 1e-6 * times_us[first]
    longest_s = np.where(has_before & has_after, 2 * LONGEST_STEP_S, LONGEST_STEP_S)
    known = (has_before | has_after) & (seconds <= longest_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        velocities = (centers[last] - centers[first]) / seconds[:, None]
    return np.where(known[:, None], velocities, np.nan)
