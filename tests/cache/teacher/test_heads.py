"""Anchor heads, which have no heatmaps, and a voxel teacher from training to store."""

from pathlib import Path

import pytest
import torch

from benchmarks.crash import contents
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.dumping.verify import verify
from cache.errors import ConfigError, MismatchError
from cache.geometry.grid import BevGrid
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec
from cache.store.reader import TeacherCache
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from cache.visualization import plot, write_html
from student.distill import DistillConfig, DistillObjective, FeatureLayer
from student.evaluation.teacher_boxes import teacher_detections

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

TEACHERS = Path(__file__).parents[2] / "data" / "teachers"


@pytest.fixture(scope="module")
def anchors() -> Mmdet3dTeacher:
    return load_teacher(str(TEACHERS / "anchors.py"), None)


@pytest.fixture(scope="module")
def store(anchors: Mmdet3dTeacher, made_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anchors") / "teacher.zarr"
    layers = {"head": CodecSpec(), "backbone1": CodecSpec()}
    dump(DumpConfig(teacher="anchors", layers=layers, workers=0), made_frames, anchors, path)
    return path


def test_an_anchor_head_has_layers_and_no_heatmap(anchors: Mmdet3dTeacher) -> None:
    assert not anchors.has_heatmap
    assert anchors.points.columns == (0, 1, 2, 4)
    assert anchors.identity.tasks[0][:3] == ("car", "truck", "trailer")
    assert anchors.heatmap_grid == anchors.layer_grids["head"]


def test_a_store_without_heatmaps(store: Path, made_frames: Frames, anchors: Mmdet3dTeacher, tmp_path: Path) -> None:
    cache = TeacherCache(store)
    assert cache.spec.heatmap == "none"
    assert dict(cache.spec.facts)["heatmap"] == "none"
    assert not (store / "heatmap").exists()
    assert not verify(store).damage
    sample = cache[made_frames.tokens[0]]
    assert sample.heatmap.shape == (1, 0, 32, 32)
    assert "heatmap" not in repr(sample)
    assert sample.features["head"].decode().abs().sum() > 0
    plot(sample).savefig(tmp_path / "a.png")
    write_html(cache, tmp_path / "a.html")
    with pytest.raises(MismatchError, match=r"a teacher without heatmaps .*got anchors, heatmap: none"):
        list(teacher_detections(cache, made_frames.tokens))


GRID = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8))


def objective(cache: TeacherCache, *terms: dict) -> DistillObjective:
    config = DistillConfig.parse(
        {"pairs": [{"student": "bev", "teacher": "head"}], "terms": list(terms)}, where="the test"
    )
    student = {"bev": FeatureLayer(channels=96, grid=GRID)}
    return DistillObjective(config, student, GRID, cache.spec.teacher.tasks, [cache.spec])


@pytest.mark.parametrize("moved", [False, True])
def test_features_are_distilled_without_heatmaps(store: Path, made_frames: Frames, moved: bool) -> None:
    cache = TeacherCache(store)
    batch = cache.read(made_frames.tokens[:1])
    features = torch.zeros(1, 96, 32, 32, requires_grad=True)
    boxes, labels = (torch.zeros(0, 9),), (torch.zeros(0, dtype=torch.int64),)
    matrix = torch.eye(4)[None].clone()
    matrix[0, 0, 3] = 0.5
    terms = objective(cache, {"kind": "fgd"}, {"kind": "all"})(
        {"bev": features}, torch.zeros(1, 10, 32, 32), batch, boxes, labels, 0, [matrix] if moved else None
    )
    sum(terms.values()).backward()
    assert features.grad is not None and features.grad.isfinite().all() and features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "term", [{"kind": "gauss_focal_heatmap"}, {"kind": "fgd", "false_positives": "teacher", "fp_weight": 1.0}]
)
def test_terms_on_heatmaps_are_refused_when_the_objective_is_built(term: dict, store: Path) -> None:
    expected = rf"has no heatmaps.*terms, {term['kind']}, cache 0\); got anchors, heatmap: none; expected .*all, fitnet"
    with pytest.raises(ConfigError, match=expected):
        objective(TeacherCache(store), term)


@pytest.mark.slow
def test_a_voxel_teacher_from_training_to_two_equal_stores(made_frames: Frames, tmp_path: Path) -> None:
    pytest.importorskip("spconv", reason="spconv is not installed (make setup WITH=voxel)")
    from cache.teacher.training import train_teacher

    model = str(TEACHERS / "voxel.py")
    teacher = load_teacher(model, train_teacher(model, made_frames, tmp_path / "run"))
    assert teacher.identity.weights == "checkpoint"
    layers = {"head": CodecSpec(), "backbone0": CodecSpec(), "middle": CodecSpec()}
    config = DumpConfig(teacher=model, layers=layers, workers=0)
    for name in "ab":
        dump(config, made_frames, teacher, tmp_path / f"{name}.zarr")
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")
    assert TeacherCache(tmp_path / "a.zarr")[made_frames.tokens[0]].features["middle"].values.shape == (1, 32, 32, 32)
