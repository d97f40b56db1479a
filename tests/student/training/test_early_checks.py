"""Typical mistakes, each with the message that names it."""

import warnings
from pathlib import Path

import pytest

from cache.errors import ConfigError, MismatchError, OfflineDistillWarning
from cache.geometry.grid import BevGrid
from cache.spec import CacheSpec, DataIdentity, PointPipeline, TeacherIdentity
from student.config.student import TASKS, DataConfig, StudentConfig
from student.training.early_checks import require_fitting, require_sound, warn_of_rehearsal

GRID = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
STORE = Path("teacher.zarr")
MINE = StudentConfig()


def spec(version: str = "v1.0-trainval", **teacher: object) -> CacheSpec:
    identity = TeacherIdentity(name="t", weights_sha256="0", config_sha256="0", tasks=TASKS)
    return CacheSpec(
        teacher=identity.model_copy(update=teacher),
        data=DataIdentity.of(version, ("train",), ("a",)),
        points=PointPipeline(),
        layers=(),
        heatmap_grid=GRID,
        canvas_grid=GRID,
    )


def test_a_sound_training_passes_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_sound(MINE)
        require_fitting(spec(), STORE, MINE, inherits=True)
        warn_of_rehearsal(spec(), STORE)


@pytest.mark.parametrize(("train", "val", "shared"), [("train", "train", 700), ("train", "mini_train", 1)])
def test_validation_on_what_was_trained_is_refused(train: str, val: str, shared: int) -> None:
    data = DataConfig(train_split=train, val_split=val)
    said = rf"share frames .*got {train} and {val}, with \d+ scenes in both, the first is scene-\d+"
    with pytest.raises(ConfigError, match=said) as caught:
        require_sound(MINE.model_copy(update={"data": data}))
    assert int(str(caught.value.got).split("with ")[1].split()[0]) >= shared


def test_an_unknown_split_is_named_before_the_training() -> None:
    with pytest.raises(ConfigError, match=r"unknown split .*got vali; expected some of .*mini_train"):
        require_sound(MINE.model_copy(update={"data": DataConfig(val_split="vali")}))


def test_a_student_s_grid_is_in_the_lidar_frame() -> None:
    detector = MINE.detector.model_copy(update={"grid": GRID.model_copy(update={"frame": "ego"})})
    with pytest.raises(ConfigError, match=r"students live in the LiDAR frame .*got ego; expected lidar"):
        require_sound(MINE.model_copy(update={"detector": detector}))


def test_a_cache_of_another_version_is_refused() -> None:
    said = r"another version of the data set \(teacher\.zarr\); got v1\.0-mini; expected v1\.0-trainval"
    with pytest.raises(MismatchError, match=said):
        require_fitting(spec(version="v1.0-mini"), STORE, MINE, inherits=False)


def test_a_head_of_another_order_is_not_inherited() -> None:
    """Tasks of the same sizes in another order have the same shapes: copying them would exchange their classes."""
    swapped = (TASKS[0], TASKS[2], TASKS[1], *TASKS[3:])
    said = r"ordered otherwise .*got car; bus, trailer; truck, construction_vehicle; .*expected car; truck,"
    with pytest.raises(MismatchError, match=said):
        require_fitting(spec(tasks=swapped), STORE, MINE, inherits=True)
    require_fitting(spec(tasks=swapped), STORE, MINE, inherits=False)


def test_random_weights_are_warned_of() -> None:
    with pytest.warns(OfflineDistillWarning, match=r"teacher\.zarr holds .* random weights: a rehearsal"):
        warn_of_rehearsal(spec(weights="random"), STORE)
