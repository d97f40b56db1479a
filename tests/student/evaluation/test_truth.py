import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import evaluate
from student.evaluation.truth import is_secret, require_truth
from student.models.decoding import Detections

Change = Callable[[list[dict]], list[dict]]


def changed(made_root: Path, root: Path, table: str, change: Change, split: str = "mini_train") -> Frames:
    """The made world with one table changed."""
    folder = Path(shutil.copytree(made_root / "v1.0-mini", root / "v1.0-mini"))
    path = folder / f"{table}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return Frames(root=root, version="v1.0-mini", splits=(split,), max_sweeps=0)


def nothing(frames: Frames) -> list[tuple[str, Detections]]:
    none = Detections(boxes=torch.zeros(0, 9), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    return [(token, none) for token in frames.tokens]


@pytest.mark.usefixtures("devkit")
def test_a_detector_that_finds_nothing_has_a_map_of_0(made_frames: Frames, tmp_path: Path) -> None:
    metrics = evaluate(nothing(made_frames), made_frames, tmp_path)
    assert (metrics.mean_ap, metrics.nds) == (0.0, 0.0)
    assert set(metrics.class_ap.values()) == {0.0}
    assert metrics.remarks[0].startswith("mAP is 0: no detection is near a box of its class")
    assert json.loads((tmp_path / "results_nusc.json").read_text())["results"] == {
        token: [] for token in made_frames.tokens
    }


def test_own_categories_cannot_be_evaluated(made_root: Path, tmp_path: Path) -> None:
    frames = changed(made_root, tmp_path, "category", lambda rows: [{**row, "name": "tram"} for row in rows])
    with pytest.raises(DataError) as caught:
        require_truth(frames)
    assert str(caught.value).startswith(
        "the split has no annotations to evaluate against (v1.0-mini, mini_train); got "
    )
    assert "boxes of tram; expected boxes of nuScenes' detection categories" in str(caught.value)


@pytest.mark.usefixtures("devkit")
def test_an_attribute_that_nuscenes_lacks_is_named_before_a_frame_runs(made_root: Path, tmp_path: Path) -> None:
    frames = changed(
        made_root, tmp_path, "attribute", lambda rows: [{**row, "name": f"my.{row['name']}"} for row in rows]
    )

    def never() -> list[tuple[str, Detections]]:
        raise AssertionError("a frame ran")
        yield

    with pytest.raises(DataError, match=r"an attribute that the official metrics do not have .*got my\.\w+.*expected"):
        evaluate(never(), frames, tmp_path / "out")


def test_an_attribute_that_is_no_record_is_named(made_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refers to a record that is not there .*got attribute_tokens 'no' in record"):
        changed(
            made_root, tmp_path, "sample_annotation", lambda rows: [{**row, "attribute_tokens": ["no"]} for row in rows]
        )


def test_the_test_split_is_secret_where_it_has_no_box(made_root: Path, made_frames: Frames, tmp_path: Path) -> None:
    assert not is_secret(made_frames)
    bare = changed(made_root, tmp_path, "sample_annotation", lambda _: [])
    assert not is_secret(bare)
    object.__setattr__(bare, "splits", ("test",))
    assert is_secret(bare)
