"""The devkit's evaluation on the frames' own tables against the one on all tables, to the last digit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from cache.errors import DataError
from cache.nuscenes.frames import Frames
from student.evaluation.evaluate import evaluate
from student.evaluation.official_tables import OfficialEval
from student.evaluation.submission import write_submission
from student.models.decoding import Detections


def noisy_truths(frames: Frames) -> list[tuple[str, Detections]]:
    """The ground truth, moved, turned and scored at random, so that every metric is of many digits."""
    rng, found = np.random.default_rng(0), []
    for frame in frames:
        boxes = frame.boxes + rng.normal(scale=0.2, size=frame.boxes.shape).astype(np.float32)
        boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.1
        scores = torch.from_numpy(rng.uniform(size=len(boxes)))
        labels = torch.from_numpy(frame.labels)
        found.append((frame.token, Detections(boxes=torch.from_numpy(boxes), scores=scores, labels=labels)))
    return found


def require_devkits_digits(frames: Frames, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    write_submission(noisy_truths(frames), frames, results, "camera")
    (split,) = frames.splits
    nusc, rules = NuScenes(frames.version, str(frames.root), verbose=False), config_factory("detection_cvpr_2019")
    theirs = DetectionEval(nusc, rules, str(results), split, str(tmp_path / "theirs"), verbose=False)
    (tmp_path / "ours").mkdir()
    ours = OfficialEval(frames, results, tmp_path / "ours")
    for done in (ours, theirs):
        done.main(render_curves=False)
    for kind in ("gt_boxes", "pred_boxes"):
        our, their = (json.dumps(getattr(done, kind).serialize(), default=np.ndarray.tolist) for done in (ours, theirs))
        assert our == their
    assert len(ours.gt_boxes.all)
    summaries = [json.loads((tmp_path / folder / "metrics_summary.json").read_text()) for folder in ("ours", "theirs")]
    for summary in summaries:
        del summary["eval_time"]
    assert json.dumps(summaries[0]) == json.dumps(summaries[1])
    details = [(tmp_path / folder / "metrics_details.json").read_bytes() for folder in ("ours", "theirs")]
    assert details[0] == details[1]


@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_the_made_world(made_root: Path, split: str, tmp_path: Path) -> None:
    require_devkits_digits(Frames(root=made_root, version="v1.0-mini", splits=(split,)), tmp_path)


@pytest.mark.parametrize(
    ("name", "version", "split"),
    [
        ("nuscenes-one-frame", "v1.0-mini", "mini_train"),
        ("nuscenes-two-frames", "v1.0-trainval", "val"),
        ("ddad-six-frames", "v1.0-mini", "mini_train"),
    ],
)
def test_real_frames(name: str, version: str, split: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[4] / "shared" / name
    if not root.is_dir():
        pytest.skip(f"{name} is not here: it is not part of the project")
    require_devkits_digits(Frames(root=root, version=version, splits=(split,)), tmp_path)


def copy_tables(source: Path, root: Path, version: str) -> Path:
    shutil.copytree(source / "v1.0-mini", root / version)
    return root / version


def test_a_split_of_ones_own_in_tables_without_maps(made_root: Path, tmp_path: Path) -> None:
    """The same numbers under another version, split and scene's name."""
    folder = copy_tables(made_root, tmp_path / "data", "mine")
    (folder / "map.json").unlink()
    scenes = json.loads((folder / "scene.json").read_text())
    for scene in scenes:
        scene["name"] = f"my {scene['name']}"
    (folder / "scene.json").write_text(json.dumps(scenes))
    known = Frames(root=made_root, version="v1.0-mini", splits=("mini_train",))
    expected = evaluate(noisy_truths(known), known, tmp_path / "known")
    (folder / "splits.json").write_text(json.dumps({"quiet": [f"my {known[0].scene}"]}))
    for split in ("quiet", f"my {known[0].scene}"):
        frames = Frames(root=tmp_path / "data", version="mine", splits=(split,))
        found = evaluate(noisy_truths(frames), frames, tmp_path / split.replace(" ", "-"))
        assert found == expected
    everything = Frames(root=tmp_path / "data", version="mine", splits=("all",))
    assert len(everything) == 2 * len(known)
    evaluate(noisy_truths(everything), everything, tmp_path / "all")


def test_a_split_without_annotations_is_refused(made_root: Path, tmp_path: Path) -> None:
    (copy_tables(made_root, tmp_path, "v1.0-mini") / "sample_annotation.json").write_text("[]")
    frames = Frames(root=tmp_path, version="v1.0-mini", splits=("mini_val",))
    with pytest.raises(DataError, match=r"no annotations to evaluate against \(v1.0-mini, mini_val\)"):
        evaluate(noisy_truths(frames), frames, tmp_path / "out")


def test_a_box_with_several_attributes_is_refused(made_root: Path, tmp_path: Path) -> None:
    folder = copy_tables(made_root, tmp_path, "v1.0-mini")
    attributes = [row["token"] for row in json.loads((folder / "attribute.json").read_text())]
    boxes = json.loads((folder / "sample_annotation.json").read_text())
    for box in boxes:
        box["attribute_tokens"] = attributes[:2]
    (folder / "sample_annotation.json").write_text(json.dumps(boxes))
    frames = Frames(root=tmp_path, version="v1.0-mini", splits=("mini_train",))
    with pytest.raises(DataError, match=r"a box has several attributes, and the official metrics take one .*of token"):
        evaluate(noisy_truths(frames), frames, tmp_path / "out")
