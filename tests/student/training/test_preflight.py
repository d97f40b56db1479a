import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cache.errors import ConfigError, DataError
from cache.geometry.grid import BevGrid
from cache.nuscenes.frames import Frames
from cache.spec import CacheSpec, DataIdentity, PointPipeline, TeacherIdentity
from student.config.student import TASKS, DataConfig, StudentConfig
from student.data.samplers import Shuffled
from student.training import preflight
from student.training.memory import checkpoint_bytes
from student.training.preflight import (
    require_disjoint_splits,
    require_disk_space,
    require_fitting,
    require_full_step,
    require_sound,
    resolve_devices,
    validation_frames,
    warn_of_random_weights,
)
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


@pytest.mark.usefixtures("devkit")
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
