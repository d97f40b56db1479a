import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cache.errors import ConfigError, DataError
from cache.nuscenes.frames import Frames
from student.training import preflight
from student.training.loaders import training_sampler
from student.training.preflight import checkpoint_bytes, require_room, resolve_devices, validation_frames
from student.training.trainer import train_student
from tests.factories.students import tiny_student


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


def test_a_step_must_fit_an_epoch(made_frames: Frames) -> None:
    with pytest.raises(ConfigError) as caught:
        training_sampler(made_frames, tiny_student(batch_size=1, accumulate=2), rank=0, ranks=2)
    assert str(caught.value) == (
        "one step needs more samples than an epoch has (training.batch_size); got 1 x 2 batches x 2 devices; "
        "expected at most 2 samples. Lower batch_size, accumulate or devices."
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
    require_room(tmp_path, layer, files, average=False)
    free(3 * 12120 - 1)
    with pytest.raises(ConfigError, match=r"the checkpoints will not fit on the disk \(.*\); got 0.00 GB free"):
        require_room(tmp_path, layer, files, average=False)
    files[0].touch()
    require_room(tmp_path, layer, files, average=False)


def test_missing_image_weights(made_root: Path, tmp_path: Path) -> None:
    config = tiny_student()
    detector = config.detector.model_copy(update={"image_weights": tmp_path / "gone.pth"})
    with pytest.raises(ConfigError, match=r"weights cannot be read \(.*gone.pth\); got no such file"):
        train_student(config.model_copy(update={"detector": detector}), made_root, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()
