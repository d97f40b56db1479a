"""Counts of boxes, and what they warn of."""

import warnings
from pathlib import Path

import pytest

from cache.errors import DataError, OfflineDistillWarning
from cache.nuscenes.counts import BoxCounts, count_boxes, require_boxes, summarise_index, warn_of_boxes
from cache.nuscenes.frames import Frames
from tests.factories.tables import Tables, make_tables, write_tables


@pytest.fixture
def tables() -> Tables:
    return make_tables()


def counts(root: Path, tables: Tables) -> BoxCounts:
    return count_boxes(Frames(root=write_tables(root, tables), version="v1.0-mini", splits=("mini_train",)))


def warning(found: BoxCounts) -> str:
    with pytest.warns(OfflineDistillWarning) as caught:
        warn_of_boxes(found, "v1.0-mini, mini_train")
    (entry,) = caught
    return str(entry.message)


def test_boxes_are_counted(tmp_path: Path, tables: Tables) -> None:
    found = counts(tmp_path, tables)
    assert {name: count for name, count in found.by_class.items() if count} == {"car": 2, "traffic_cone": 1}
    assert (found.frames, found.boxes, found.empty, found.uncounted, found.fast) == (2, 3, 1, 0, 0)
    assert found.unknown == {}  # An animal is of no class, but nuScenes' own.
    assert str(found) == "2 frames, 3 boxes (car 2, traffic_cone 1), 1 without a point left out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_boxes(found, "")
    require_boxes(found, "")


def test_only_the_frames_of_the_split_are_counted(made_root: Path) -> None:
    each = [
        count_boxes(Frames(root=made_root, version="v1.0-mini", splits=splits)).boxes
        for splits in (("mini_train",), ("mini_val",), ("mini_train", "mini_val"))
    ]
    assert each[0] + each[1] == each[2]
    assert all(each)


def test_boxes_without_points_are_refused(tmp_path: Path, tables: Tables) -> None:
    for box in tables["sample_annotation"]:
        box["num_lidar_pts"] = 0
    found = counts(tmp_path, tables)
    with pytest.raises(DataError) as caught:
        require_boxes(found, "v1.0-mini, mini_train")
    assert str(caught.value) == (
        "the split has no boxes to learn from (v1.0-mini, mini_train); got 2 frames with 4 annotations, all dropped "
        "for holding no point; expected boxes of nuScenes' ten classes with num_lidar_pts + num_radar_pts above 0. "
        "Check num_lidar_pts in sample_annotation.json and the names in category.json, or change the split."
    )
    assert warning(found) == ("v1.0-mini, mini_train: none of 2 frames has a box: 4 were dropped for holding no point")


def test_no_annotations_are_refused(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"] = []
    with pytest.raises(DataError, match=r"no boxes to learn from .*got 2 frames with no annotation;"):
        require_boxes(counts(tmp_path, tables), "")


def test_boxes_that_nobody_counted_the_points_of(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"][2] |= {"num_lidar_pts": -1, "num_radar_pts": -1}
    found = counts(tmp_path, tables)
    assert (found.uncounted, found.empty) == (1, 2)
    assert warning(found) == (
        "v1.0-mini, mini_train: 1 boxes have a point count below 0 and are left out like those without a point: write "
        "the counts, or 1 where nobody counted"
    )


def test_boxes_beyond_any_speed(tmp_path: Path, tables: Tables) -> None:
    tables["sample_annotation"][1]["translation"] = (100, 262, 1)  # 51 m in half a second.
    found = counts(tmp_path, tables)
    assert found.fast == 2
    assert warning(found).startswith("v1.0-mini, mini_train: 2 boxes move faster than 100 m/s: check that timestamps")


def test_categories_that_nuscenes_does_not_have(tmp_path: Path, tables: Tables) -> None:
    tables["category"][0]["name"] = "Car"
    found = counts(tmp_path, tables)
    assert found.unknown == {"Car": 2}
    assert warning(found).startswith("v1.0-mini, mini_train: 2 boxes are of no detection class (Car): name the categ")


def test_the_index_is_summarised(tmp_path: Path, tables: Tables) -> None:
    root = write_tables(tmp_path, tables)
    (root / "v1.0-mini" / "splits.json").write_text('{"mine": ["scene-0061"], "elsewhere": ["scene-0001"]}')
    found = summarise_index(root, "v1.0-mini")
    assert found.splits == {"train": 2, "mini_train": 2, "train_detect": 2, "mine": 2}
    assert (found.scenes, found.boxes.boxes) == (1, 3)
    assert found.path is not None
    lines = str(found).splitlines()
    assert lines[0].startswith("v1.0-mini: 1 scenes, 2 frames, 3 boxes (car 2, traffic_cone 1)")
    assert lines[1] == "splits: train 2, mini_train 2, train_detect 2, mine 2"
    assert lines[2].startswith("sensors: LIDAR_TOP, CAM_FRONT_LEFT, CAM_FRONT,")
    assert lines[3] == f"index: {found.path}, {found.bytes / 1e6:,.1f} MB"
