import math
from pathlib import Path

import pytest

from cache.config import load_yaml
from cache.errors import ConfigError
from student.config.student import StudentConfig, TrainingConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "student.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_public_default(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, ""), StudentConfig) == StudentConfig()


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {learning_rat: 1.0e-3}")
    with pytest.raises(
        ConfigError, match=r"unknown key 'training.learning_rat': did you mean 'learning_rate'\?"
    ) as caught:
        load_yaml(path, StudentConfig)
    assert str(path) in str(caught.value)


def test_a_value_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.batch_size: .*greater than or equal to 1, got 0"):
        load_yaml(write(tmp_path, "training: {batch_size: 0}"), StudentConfig)


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {batch_size: 3, seed: 5}")
    config = load_yaml(path, StudentConfig, ["training.batch_size=2", "distill=null", "detector.head.min_radius=1"])
    assert (config.training.batch_size, config.training.seed, config.distill) == (2, 5, None)
    assert config.detector.head.min_radius == 1


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not an override .*; got distill; expected dotted.key=value"):
        load_yaml(write(tmp_path, ""), StudentConfig, ["distill"])


def test_schedules() -> None:
    cosine = TrainingConfig(schedule="cosine", warmup_steps=3, epochs=13)
    factors = [cosine.schedule_factor(step, steps_per_epoch=1) for step in range(14)]
    assert factors[:3] == [0.25, 0.5, 0.75]
    assert factors[3] == 1.0
    assert math.isclose(factors[8], 0.5)
    assert math.isclose(factors[13], 0.0, abs_tol=1e-12)
    assert TrainingConfig().schedule_factor(1000, steps_per_epoch=10) == 1.0
    steps = TrainingConfig(schedule="step", milestones=(2, 3), gamma=0.5, epochs=4)
    assert [steps.schedule_factor(step, steps_per_epoch=2) for step in range(8)] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "keys",
    ["schedule: step", "milestones: [2]", "schedule: step, milestones: [0]", "schedule: cosine, milestones: [2]"],
)
def test_milestones_must_fit_the_schedule(tmp_path: Path, keys: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule and milestones do not fit each other \(training.milestones\)"):
        load_yaml(write(tmp_path, f"training: {{{keys}}}"), StudentConfig)


@pytest.mark.parametrize(("value", "devices"), [("auto", "auto"), ("3", 3)])
def test_devices_are_a_number_or_all(tmp_path: Path, value: str, devices: int | str) -> None:
    assert load_yaml(write(tmp_path, f"training: {{devices: {value}}}"), StudentConfig).training.devices == devices


def test_compiling_and_recomputing_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot follow blocks that are computed again \(training.compile\)"):
        load_yaml(write(tmp_path, "training: {compile: true, activation_checkpointing: true}"), StudentConfig)


def test_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a training needs a device"):
        load_yaml(write(tmp_path, "training: {devices: 0}"), StudentConfig)


def test_a_student_may_be_distilled_and_augmented(tmp_path: Path) -> None:
    terms = "distill: {terms: [{kind: gauss_focal_heatmap}]}"
    config = load_yaml(
        write(tmp_path, f"bev_augment: {{rotation_deg: [-22.5, 22.5], flip_x: true}}\n{terms}"), StudentConfig
    )
    assert config.distill is not None
    assert config.bev_augment.flip_x and not config.bev_augment.replay


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bev_augment: {replay: true, flip_x: true}\ndistill: {}", "replayed views leave nothing to draw"),
        ("bev_augment: {replay: true}", "there is no cache whose views could be replayed"),
        ("detector: {grid: {x_range_m: [0, 8], y_range_m: [0, 8], cell_m: [1, 1], axes: xy}}", "a row for each y"),
    ],
)
def test_what_no_student_can_do_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_yaml(write(tmp_path, text), StudentConfig)


def test_the_layers_of_each_teacher(tmp_path: Path) -> None:
    pairs = "{student: head, teacher: head}, {student: head, teacher: backbone1}, {student: head, teacher: p, cache: 1}"
    config = load_yaml(write(tmp_path, f"distill: {{pairs: [{pairs}], terms: [{{kind: fgd}}]}}"), StudentConfig)
    assert [config.teacher_layers(cache) for cache in range(3)] == [("backbone1", "head"), ("p",), ()]
    assert StudentConfig().teacher_layers() == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": {"z_range_m": [5, -5]}}, "detector.z_range_m: .*the first value should not be above the second"),
        ({"detector": {"z_range_m": [5, 5]}}, r"no point lies between two equal heights \(detector.z_range_m\)"),
        ({"image": {"crop_height": [5, 9]}}, r"impossible \(image.crop_height\); got 5 .. 9; expected within 0 .. 1"),
        ({"image": {"resize": [-5, -5]}}, r"impossible \(image.resize\); got -5 .. -5; expected within -2 .. 2"),
        ({"image": {"size": [0, 704]}}, "image.size.0: Input should be greater than or equal to 1"),
        ({"image": {"size": [9000, 704]}}, r"images of that size .*got 9000 x 704; expected at most 8192 pixels"),
        ({"training": {"seed": -1}}, "training.seed: Input should be greater than or equal to 0"),
        ({"training": {"batch_size": True}}, "training.batch_size: Input should be a value other than true"),
        ({"detector": {"head": {"tasks": [["car"], ["car"]]}}}, r"a class is in two places \(.*tasks\); got car;"),
        ({"detector": {"head": {"tasks": [["tram"]]}}}, "a class is none of nuScenes' .*got tram; expected tasks of"),
        ({"detector": {"head": {"tasks": [[], ["car"]]}}}, "a task has no class"),
        (
            {"detector": {"grid": {"x_range_m": [0, 1e300], "y_range_m": [0, 8], "cell_m": [1, 1]}}},
            "whole number, 1 ..",
        ),
        ({"detector": {"depth_m": [1, 1e308, 1e-300]}}, "not a whole number of bins"),
    ],
)
def test_values_that_cannot_be_meant(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentConfig.parse(change, where="here")
