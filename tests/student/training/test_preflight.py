import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cache.errors import ConfigError, DataError, MismatchError, OfflineDistillWarning
from cache.geometry.grid import BevGrid
from cache.nuscenes.frames import Frames
from cache.nuscenes.official import split_scenes
from cache.spec import CacheSpec, DataIdentity, PointPipeline, TeacherIdentity
from student.config.student import TASKS, DataConfig, StudentConfig
from student.data.samplers import Shuffled
from student.data.teacher_source import TeacherSource
from student.training import preflight
from student.training.memory import checkpoint_bytes
from student.training.plan import plan_training
from student.training.preflight import (
    require_disjoint_splits,
    require_disk_space,
    require_fitting,
    require_fitting_sources,
    require_full_step,
    require_sound,
    resolve_devices,
    validation_frames,
    warn_of_metric_limits,
    warn_of_random_weights,
)
from student.training.setup import set_up_training
from student.training.trainer import train_student
from tests.factories.students import tiny_student

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend to have so many."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_is_every_gpu_or_one_cpu(gpus: Callable[[int], None]) -> None:
    config = tiny_student(devices="auto")
    for count, devices in ((0, 1), (1, 1), (4, 4)):
        gpus(count)
        assert resolve_devices(config).training.devices == devices
    gpus(0)
    assert resolve_devices(tiny_student(devices=3)).training.devices == 3


def test_more_devices_than_gpus_are_refused(gpus: Callable[[int], None]) -> None:
    gpus(2)
    with pytest.raises(ConfigError, match=r"more devices than GPUs \(training.devices\); got 4; expected at most 2"):
        resolve_devices(tiny_student(devices=4))


@pytest.mark.parametrize(("key", "value"), [("precision", "16-mixed"), ("sync_batchnorm", True)])
def test_what_needs_a_gpu_is_refused_without(gpus: Callable[[int], None], key: str, value: object) -> None:
    config = tiny_student(**{key: value})
    gpus(1)
    resolve_devices(config)
    gpus(0)
    with pytest.raises(ConfigError, match=rf"there is no GPU, and an option needs one \(training.{key}\); got {value}"):
        resolve_devices(config)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    resolve_devices(tiny_student())
    with pytest.raises(ConfigError, match=r"torch.compile needs a C\+\+ compiler \(training.compile\)"):
        resolve_devices(tiny_student(compile=True))


def test_validation_needs_annotations(made_frames: Frames, made_root: Path, tmp_path: Path) -> None:
    assert validation_frames(tiny_student(), made_frames) is None
    frames = validation_frames(tiny_student(validate_every=1), made_frames)
    assert frames is not None
    assert not set(frames.tokens) & set(made_frames.tokens)
    shutil.copytree(made_root / "v1.0-mini", tmp_path / "v1.0-mini")
    (tmp_path / "v1.0-mini" / "sample_annotation.json").write_text("[]")
    bare = Frames(root=tmp_path, version="v1.0-mini", splits=("mini_train",))
    with pytest.raises(DataError, match=r"the validation split has no annotations \(v1.0-mini, mini_val\)"):
        validation_frames(tiny_student(validate_every=1), bare)


def test_validation_needs_the_devkit(made_frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes", None)
    assert validation_frames(tiny_student(), made_frames) is None
    with pytest.raises(ConfigError, match=r"need nuScenes' devkit \(training\.validate_every\); .*the extra evaluate"):
        validation_frames(tiny_student(validate_every=1), made_frames)


def test_a_step_must_fit_an_epoch(made_frames: Frames) -> None:
    with pytest.raises(ConfigError) as caught:
        require_full_step(
            Shuffled(frames=len(made_frames)), tiny_student(batch_size=1, accumulate=2, devices=2).training
        )
    assert str(caught.value) == (
        "one step needs more samples than an epoch has (training.batch_size); got 1 x 2 batches x 2 devices of all "
        "nodes; expected at most 2 samples. Lower batch_size, accumulate or devices."
    )


def test_a_folder_that_cannot_be_written(made_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the run's folder cannot be written \(.*file/run\); got .*Give another"):
        train_student(tiny_student(), made_root, [], tmp_path / "file" / "run")


def test_checkpoints_must_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1000 + 10 parameters and Adam's two moments of each; with an average the parameters once more.
    layer = nn.Linear(100, 10)
    assert checkpoint_bytes(layer, average=False) == 3 * 4 * 1010
    assert checkpoint_bytes(layer, average=True) == 4 * 4 * 1010
    files = [tmp_path / "last.ckpt", tmp_path / "best.ckpt"]

    def free(size: int) -> None:
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    free(3 * 12120)
    require_disk_space(tmp_path, layer, files, average=False)
    free(3 * 12120 - 1)
    with pytest.raises(ConfigError, match=r"the checkpoints will not fit on the disk \(.*\); got 0.00 GB free"):
        require_disk_space(tmp_path, layer, files, average=False)
    files[0].touch()
    require_disk_space(tmp_path, layer, files, average=False)


def test_missing_image_weights(made_root: Path, tmp_path: Path) -> None:
    config = tiny_student()
    detector = config.detector.model_copy(update={"image_weights": tmp_path / "gone.pth"})
    with pytest.raises(ConfigError, match=r"weights cannot be read \(.*gone.pth\); got No such file"):
        train_student(config.model_copy(update={"detector": detector}), made_root, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sound_training_passes_in_silence(made_frames: Frames) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_sound(MINE)
        require_disjoint_splits(MINE.data, made_frames)
        require_fitting(spec(), STORE, MINE, inherits=True)
        warn_of_random_weights(spec(), STORE)


@pytest.mark.parametrize(("train", "val", "shared"), [("train", "train", 700), ("train", "mini_train", 1)])
def test_validation_on_what_was_trained_is_refused(made_frames: Frames, train: str, val: str, shared: int) -> None:
    data = DataConfig(train_split=train, val_split=val)
    said = rf"share frames .*got {train} and {val}, with \d+ scenes in both, the first is scene-\d+"
    with pytest.raises(ConfigError, match=said) as caught:
        require_disjoint_splits(data, made_frames)
    assert int(str(caught.value.got).split("with ")[1].split()[0]) >= shared


def test_an_unknown_split_is_named_before_the_training(made_frames: Frames) -> None:
    with pytest.raises(ConfigError, match=r"unknown split .*got vali; expected some of .*mini_train"):
        require_disjoint_splits(DataConfig(val_split="vali"), made_frames)


def test_boxes_without_points_are_refused(made_root: Path, tmp_path: Path) -> None:
    shutil.copytree(made_root / "v1.0-mini", tmp_path / "v1.0-mini")
    table = tmp_path / "v1.0-mini" / "sample_annotation.json"
    boxes = json.loads(table.read_text())
    table.write_text(json.dumps([{**box, "num_lidar_pts": 0, "num_radar_pts": 0} for box in boxes]))
    with pytest.raises(DataError, match=r"no boxes to learn from \(v1\.0-mini, mini_train\).*dropped for holding no p"):
        train_student(tiny_student(), tmp_path, [], tmp_path / "run")


def test_a_student_s_grid_is_in_the_lidar_frame() -> None:
    detector = MINE.detector.model_copy(update={"grid": GRID.model_copy(update={"frame": "ego"})})
    with pytest.raises(ConfigError, match=r"the student's grid must be in the LiDAR frame .*got ego; expected lidar"):
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


def test_a_head_without_heatmaps_is_not_inherited() -> None:
    anchors = spec().model_copy(update={"heatmap": "none"})
    said = r"no head that the student could inherit \(teacher\.zarr\); got .*heatmap: none; .*inherit_head to false"
    with pytest.raises(MismatchError, match=said):
        require_fitting(anchors, STORE, MINE, inherits=True)
    require_fitting(anchors, STORE, MINE, inherits=False)


def test_random_weights_are_warned_of() -> None:
    with pytest.warns(OfflineDistillWarning, match=r"teacher\.zarr holds .* random weights: a rehearsal"):
        warn_of_random_weights(spec(weights="random"), STORE)


def rename_lidar(folder: Path) -> None:
    table = folder / "sensor.json"
    table.write_text(table.read_text().replace("LIDAR_TOP", "roof"))


def test_a_cache_of_another_lidar_is_refused(views_store: Path, made_root: Path, tmp_path: Path) -> None:
    """Its maps are in the frame of the LiDAR that its teacher saw."""
    config = tiny_student()
    shutil.copytree(made_root / "v1.0-mini", tmp_path / "v1.0-mini")
    rename_lidar(tmp_path / "v1.0-mini")
    frames = Frames(root=tmp_path, version="v1.0-mini", splits=("mini_train",))
    pairs, terms = [{"student": "head", "teacher": "head"}], [{"kind": "all", "weight": 1.0}]
    distilled = StudentConfig.model_validate(config.model_dump() | {"distill": {"pairs": pairs, "terms": terms}})
    source = TeacherSource.open(views_store, distilled)
    with pytest.raises(MismatchError, match=r"data\.lidar: stored 'LIDAR_TOP', expected 'roof'"):
        require_fitting_sources([source], distilled, frames)


def own_world(made_root: Path, root: Path) -> Path:
    """The made-up world under a version and splits of its own; a box in validation has two attributes."""
    shutil.copytree(made_root / "v1.0-mini", root / "mine")
    for name in ("samples", "sweeps"):
        (root / name).symlink_to(made_root / name)
    folder = root / "mine"
    scenes = {row["token"]: row["name"] for row in json.loads((folder / "scene.json").read_text())}
    (train, val) = sorted(scenes.values(), key=lambda name: name not in split_scenes()["mini_train"])
    (folder / "splits.json").write_text(json.dumps({"my_train": [train], "my_val": [val]}))
    samples = json.loads((folder / "sample.json").read_text())
    of_val = {row["token"] for row in samples if scenes[row["scene_token"]] == val}
    attributes = [row["token"] for row in json.loads((folder / "attribute.json").read_text())]
    boxes = json.loads((folder / "sample_annotation.json").read_text())
    next(box for box in boxes if box["sample_token"] in of_val)["attribute_tokens"] = attributes[:2]
    (folder / "sample_annotation.json").write_text(json.dumps(boxes))
    return root


def own_student(**training: object) -> StudentConfig:
    data = {"version": "mine", "train_split": "my_train", "val_split": "my_val", "workers": 0}
    cameras = {"cameras": ["CAM_BACK", "CAM_FRONT"], "lidar": "LIDAR_TOP"}
    return StudentConfig.model_validate(tiny_student(**training).model_dump() | {"data": data | cameras})


def test_a_plan_says_what_the_metrics_cannot_do(made_root: Path, tmp_path: Path) -> None:
    root = own_world(made_root, tmp_path)
    with pytest.warns(OfflineDistillWarning) as caught:
        plan_training(own_student(), root, [])
    about = "official metrics on mine, my_val (data.val_split): "
    said = [str(w.message).removeprefix(about) for w in caught if str(w.message).startswith(about)]
    assert said[0].startswith("`evaluate` will refuse it: a box has several attributes, and the official metrics take")
    assert "got several, and 0 more such boxes" in said[0]
    assert said[1].startswith("the detector does not predict truck, construction_vehicle, bus, trailer, motorcycle, b")
    assert said[2] == "boxes that none of CAM_BACK, CAM_FRONT sees are evaluated too, and count as missed"


def test_validation_that_the_devkit_would_refuse_is_no_run(made_root: Path, tmp_path: Path) -> None:
    root = own_world(made_root, tmp_path)
    with pytest.raises(DataError, match=r"several attributes, and the official metrics take one .sample_annotation"):
        train_student(own_student(validate_every=1), root, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_validation_split_without_frames(made_frames: Frames) -> None:
    config = tiny_student().model_copy(update={"data": MINE.data.model_copy(update={"val_split": "test"})})
    with pytest.warns(OfflineDistillWarning, match=r"v1\.0-mini, test \(data\.val_split\): it holds no key frame here"):
        warn_of_metric_limits(config, made_frames)


def test_the_student_s_sensors_are_those_of_the_configuration(made_root: Path, tmp_path: Path) -> None:
    root = own_world(made_root, tmp_path)
    rename_lidar(root / "mine")
    frames = {}
    for lidar in ("", "roof"):
        data = own_student().data.model_copy(update={"lidar": lidar})
        frames[lidar] = set_up_training(own_student().model_copy(update={"data": data}), root, []).dataset.frames
        assert frames[lidar].cameras == ("CAM_BACK", "CAM_FRONT")
    assert frames["roof"] == frames[""]
    assert [camera.name for camera in frames["roof"][0].cameras] == ["CAM_BACK", "CAM_FRONT"]
