"""The study with a small, known teacher."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cache.errors import MismatchError, TeacherError
from cache.geometry.views import BevAugmentConfig, transform_points
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.store.reader import TeacherCache
from cache.teacher.base import TeacherInput
from student.fidelity.report import tables, write
from student.fidelity.similarity import REGIONS, Similarity, total
from student.fidelity.study import Comparison, FidelityReport, FidelityStudy
from student.fidelity.view_sets import ViewSet, comparable_view_sets
from tests.factories.students import make_teacher


@pytest.fixture(scope="module")
def study(views_store: Path) -> FidelityStudy:
    return FidelityStudy(TeacherCache(views_store), make_teacher(), draws=1)


@pytest.fixture(scope="module")
def report(
    devkit: ModuleType, study: FidelityStudy, made_frames: Frames, tmp_path_factory: pytest.TempPathFactory
) -> FidelityReport:
    return study.run(made_frames, tmp_path_factory.mktemp("fidelity"), lambda *_: None)


def pooled(comparisons: list[Comparison], layer: str = "head") -> Similarity:
    return total([each.layers[layer][region] for each in comparisons for region in REGIONS])


def under(study: FidelityStudy, frames: Frames, matrix: np.ndarray, name: str = "canonical") -> Comparison:
    """The first frame under a matrix, with a view set."""
    (view_set,) = (each for each in study.view_sets if each.name == name)
    points = transform_points(load_points(frames[0], study.teacher.points), matrix)
    return study._compare(
        frames[0], view_set, matrix, study.teacher([study.teacher.prepare(TeacherInput.of_points(points))])
    )[0]


def test_what_the_teacher_saw_itself_is_exact_but_for_the_code(report: FidelityReport) -> None:
    for name in ("no augmentation", "drawn views, replayed"):
        found = [each for each in report.comparisons if each.view_set == name]
        assert len(found) == report.frames == 2
        assert pooled(found).relative_error < 0.01
        assert pooled(found).cosine > 0.9999
        assert all(each.loss.cached == pytest.approx(each.loss.live, rel=1e-2) for each in found)
        assert total([each.loss.gradient for each in found]).relative_error < 0.05
    # Features are the same, so the head finds the same.
    by_name = {(each.view_set, each.source): each.metrics for each in report.head}
    assert by_name["no augmentation", "still"].nds == pytest.approx(by_name["live", "still"].nds, abs=0.02)


def test_reflections_are_exact_where_they_are_all_there_is(study: FidelityStudy, made_frames: Frames) -> None:
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(np.float32)
    assert pooled([under(study, made_frames, flipped, "4 reflections")]).relative_error < 0.01
    assert pooled([under(study, made_frames, flipped)]).relative_error > 0.1
    assert under(study, made_frames, flipped, "4 reflections").view == "flip_x"


def test_a_shift_of_whole_cells_is_undone_by_the_warp(study: FidelityStudy, made_frames: Frames) -> None:
    """Counting points and a convolution know no place: only the last cells before the edge differ."""
    moved = np.eye(4, dtype=np.float32)
    moved[:2, 3] = 1.6, -2.4
    found = under(study, made_frames, moved)
    assert pooled([found]).relative_error < 0.2
    assert pooled([found]).cosine > 0.98
    assert found.loss.cached == pytest.approx(found.loss.live, rel=0.2)


def test_a_warp_is_nearer_than_none(study: FidelityStudy, made_frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.deg2rad(20)
    turned = np.eye(4, dtype=np.float32)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    warped = pooled([under(study, made_frames, turned)])
    monkeypatch.setattr("student.fidelity.study.to_teacher", lambda *_: None)
    unwarped = pooled([under(study, made_frames, turned)])
    assert warped.relative_error < 0.75 * unwarped.relative_error


def test_view_sets_follow_from_the_views(study: FidelityStudy) -> None:
    names = [view_set.name for view_set in study.view_sets]
    assert names == [
        "no augmentation",
        "moved by 0.05 m",
        "canonical",
        "2 reflections",
        "4 reflections",
        "drawn views, replayed",
    ]
    alone = study.cache.spec.model_copy(update={"views": ("canonical",), "drawn": None})
    assert [view_set.name for view_set in comparable_view_sets(alone)] == names[:3]
    drawn = study.cache.spec.model_copy(update={"views": ("drawn0",)})
    assert comparable_view_sets(drawn) == (ViewSet(name="drawn views, replayed", views=(0,), source="replayed"),)


def test_tables_and_files(report: FidelityReport, tmp_path: Path) -> None:
    markdown, data, picture = write(report, tmp_path / "out")
    text = markdown.read_text()
    assert "| views | layer | error, foreground |" in text
    assert "| drawn views, replayed | head | 0.0" in text
    assert len(json.loads(data.read_text())["report"]["comparisons"]) == len(report.comparisons)
    assert picture.stat().st_size > 10_000
    assert {len(row) for table in tables(report) for row in table.rows} >= {4, 7, 8}
    by_rotation = tables(report)[1]
    assert [row[0] for row in by_rotation.rows][:2] == ["0 .. 5", "5 .. 10"]
    assert by_rotation.rows[0][1].endswith("(2)")


def test_another_teacher_is_refused(views_store: Path) -> None:
    teacher = make_teacher()
    teacher.identity = teacher.identity.model_copy(update={"weights_sha256": "c" * 64})
    with pytest.raises(MismatchError, match=r"teacher.weights_sha256: stored '000"):
        FidelityStudy(TeacherCache(views_store), teacher)


@pytest.mark.usefixtures("devkit")
def test_a_head_that_is_built_otherwise_is_noticed(views_store: Path, made_frames: Frames, tmp_path: Path) -> None:
    teacher = make_teacher()
    study = FidelityStudy(TeacherCache(views_store), teacher, draws=1)
    teacher.head.task_heads[0].heatmap[-1].bias += 1.0
    with pytest.raises(TeacherError, match="does not repeat the teacher's heatmap"):
        study.run(made_frames, tmp_path, lambda *_: None)


def test_draws_are_those_of_the_stores_augmentation(study: FidelityStudy, made_frames: Frames) -> None:
    assert study.augment == study.cache.spec.drawn.augment == BevAugmentConfig(
        rotation_deg=(-22.5, 22.5), scale=(0.95, 1.05), flip_x=True, flip_y=True
    )  # fmt: skip
    trials = list(study._trials(made_frames[0], 0))
    assert [(trial.source, trial.number) for trial in trials] == [
        ("still", 0),
        ("moved", 0),
        ("drawn", 0),
        ("replayed", 0),
    ]
