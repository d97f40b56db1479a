"""Checkpoints: weights that fit are loaded, others are listed, and no code of a file is run."""

import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cache.errors import ConfigError, OfflineDistillWarning, TeacherError
from cache.teacher.checkpoint import LoadOptions, load_weights, weights_sha256


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "meta": {"epoch": 3}}])
def test_weights_are_loaded(tmp_path: Path, wrap: Any) -> None:
    trained, fresh = small(1), small(2)
    load_weights(fresh, save(tmp_path / "w.pth", wrap(trained.state_dict())))
    torch.testing.assert_close(fresh[0].weight, trained[0].weight, rtol=0, atol=0)


def test_the_log_of_mmengine_is_skipped(tmp_path: Path) -> None:
    """Its HistoryBuffer pickles numpy arrays and its own methods, through getattr."""
    logging = pytest.importorskip("mmengine.logging")
    history = logging.HistoryBuffer(np.arange(4.0), np.ones(4))
    checkpoint = {
        "state_dict": small(1).state_dict(),
        "message_hub": {"log_scalars": OrderedDict(loss=history), "runtime_info": {"best": np.float64(0.5)}},
    }
    fresh = small(2)
    load_weights(fresh, save(tmp_path / "w.pth", checkpoint))
    assert weights_sha256(fresh) == weights_sha256(small(1))
    with pytest.raises(Exception, match="Weights only load failed"):  # Without the stand-ins, torch refuses the file.
        torch.load(tmp_path / "w.pth", weights_only=True)


def center_head() -> nn.Module:
    """Names as mmdet3d's CenterHead gives them: a branch is a convolution with a norm, then a convolution."""
    torch.manual_seed(3)
    branch = lambda width: nn.Sequential(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)}), nn.Conv2d(4, width, 1))  # noqa: E731
    head = nn.Module()
    head.task_heads = nn.ModuleList(nn.ModuleDict({"dim": branch(3), "rot": branch(2), "reg": branch(2)}) for _ in "ab")
    return nn.ModuleDict({"pts_bbox_head": head})


def test_boxes_of_old_mmdet3d_are_converted_and_reported(tmp_path: Path) -> None:
    """A box of 1.8 m across and 4.2 m along, heading 0.3 rad, in both conventions."""
    old, new = center_head(), center_head()
    yaw = -0.3 - np.pi / 2
    for task in old.pts_bbox_head.task_heads:
        task["dim"][1].bias.data = torch.tensor([1.8, 4.2, 1.5]).log()
        task["rot"][1].bias.data = torch.tensor([np.sin(yaw), np.cos(yaw)]).float()
    path = save(tmp_path / "w.pth", {"state_dict": old.state_dict(), "meta": {"mmdet3d_version": "0.17.2"}})
    with pytest.warns(
        OfflineDistillWarning, match=r"w\.pth was trained with mmdet3d 0\.17\.2, .*converted .*\(8 tensors\)"
    ):
        load_weights(new, path)
    for task, before in zip(new.pts_bbox_head.task_heads, old.pts_bbox_head.task_heads, strict=True):
        torch.testing.assert_close(task["dim"][1].bias.exp(), torch.tensor([4.2, 1.8, 1.5]))
        sine, cosine = task["rot"][1].bias.tolist()
        assert np.arctan2(sine, cosine) == pytest.approx(0.3)
        torch.testing.assert_close(task["dim"][1].weight, before["dim"][1].weight[[1, 0, 2]])
        torch.testing.assert_close(task["rot"][1].weight, -before["rot"][1].weight[[1, 0]])
        for kept in (("reg", 1), ("dim", 0)):
            ours, theirs = (dict(t[kept[0]][kept[1]].named_parameters()) for t in (task, before))
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("meta", [{}, {"mmdet3d_version": "1.0.0rc3"}, {"mmdet3d_version": 17}])
def test_boxes_of_current_mmdet3d_stay(meta: dict, tmp_path: Path) -> None:
    trained, fresh = center_head(), center_head()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(fresh, save(tmp_path / "w.pth", {"state_dict": trained.state_dict(), "meta": meta}))
    assert weights_sha256(fresh) == weights_sha256(trained)


class Attack:
    """A pickle of it asks to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"state_dict": small().state_dict(), "meta": Attack(tmp_path / "owned")})
    with pytest.raises(TeacherError, match=r"no checkpoint that can be loaded safely .*If you trust its origin"):
        load_weights(small(), path)
    assert not (tmp_path / "owned").exists()


class Lookup:
    """A pickle of it asks for a path's method through getattr."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return getattr, (Path(self.folder), "mkdir")


def test_getattr_of_a_pickle_gets_nothing(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="loaded safely"):
        load_weights(small(), save(tmp_path / "w.pth", {"state_dict": {}, "meta": Lookup(tmp_path / "owned")}))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"(no checkpoint that can be loaded|holds no state dict).*"):
        load_weights(small(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"cannot be read .*w\.pth\); got No such file"):
        load_weights(small(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [({"state_dict": {}}, "got state_dict"), ({"epoch": 3}, "got epoch"), ([1, 2], "got list"), ({}, "no state dict")],
)
def test_content_without_weights_is_described(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        load_weights(small(), save(tmp_path / "w.pth", content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("0.bias"), "got 1 missing: 0.bias. Pair"),
        (lambda state: state.update(head=torch.zeros(1)), "got 1 unexpected: head. Pair"),
        (
            lambda state: state.update({"0.weight": torch.zeros(3, 5, 1, 1)}),
            r"got 1 of another shape: 0.weight \(3, 5, 1, 1\) for \(3, 2, 1, 1\). Pair",
        ),
        (
            lambda state: state.update({"0.bias": torch.zeros(9), "x": state.pop("1.bias")}),
            r"1 missing: 1.bias; 1 unexpected: x; 1 of another shape: 0.bias \(9,\) for \(3,\)",
        ),
    ],
)
def test_weights_of_another_detector_are_listed(tmp_path: Path, change: Any, said: str) -> None:
    state = small().state_dict()
    change(state)
    with pytest.raises(TeacherError, match=f"belongs to another detector .*{said}"):
        load_weights(small(), save(tmp_path / "w.pth", state))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    state = {f"layer{i}": torch.zeros(1) for i in range(9)} | small().state_dict()
    with pytest.raises(TeacherError, match="9 unexpected: layer0, layer1, layer2, layer3 and 5 more"):
        load_weights(small(), save(tmp_path / "w.pth", state))


def test_weights_must_be_finite(tmp_path: Path) -> None:
    state = small().state_dict()
    state["1.running_var"][1] = float("nan")
    with pytest.raises(TeacherError, match=r"not finite .*got 1\.running_var"):
        load_weights(small(), save(tmp_path / "w.pth", state))


def test_the_hash_sees_values_names_and_types_but_not_order() -> None:
    module = small(1)
    other = nn.ModuleDict({"1": module[1], "0": module[0]})  # The same names and tensors in another order.
    assert list(other.state_dict()) != list(module.state_dict())
    assert weights_sha256(module) == weights_sha256(other)
    assert weights_sha256(module) != weights_sha256(nn.ModuleDict({"a": module[0], "1": module[1]}))
    before = weights_sha256(module)
    with torch.no_grad():
        module[0].bias[0] += 1e-6
    assert weights_sha256(module) != before
    assert weights_sha256(module.half()) != weights_sha256(module.float())


@pytest.mark.parametrize(
    ("meta", "boxes", "converted"),
    [
        ({"mmdet_version": "0.8.0", "mmcv_version": "1.1.5"}, "auto", True),  # autumn 2020: mmdet3d's own version
        ({"mmdet_version": "2.14.0", "mmdet3d_version": "0.17.2"}, "auto", True),
        ({"mmdet_version": "2.28.2", "mmdet3d_version": "1.0.0rc6"}, "auto", False),
        ({"mmdet_version": "2.28.2"}, "auto", False),
        ({"mmengine_version": "0.10.7"}, "auto", False),
        ({}, "old", True),
        ({"mmdet3d_version": "0.17.2"}, "new", False),
    ],
)
def test_boxes_by_version_or_by_what_the_user_says(meta: dict, boxes: Any, converted: bool, tmp_path: Path) -> None:
    old, new = center_head(), center_head()
    old.pts_bbox_head.task_heads[0]["dim"][1].bias.data = torch.tensor([1.8, 4.2, 1.5])
    path = save(tmp_path / "w.pth", {"state_dict": old.state_dict(), "meta": meta})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_weights(new, path, LoadOptions.of(boxes, None))
    expected = [4.2, 1.8, 1.5] if converted else [1.8, 4.2, 1.5]
    torch.testing.assert_close(new.pts_bbox_head.task_heads[0]["dim"][1].bias.data, torch.tensor(expected))
    assert len(caught) == int(converted)


def test_an_unknown_convention_of_boxes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--boxes.*got odd; expected auto, old or new"):
        LoadOptions.of("odd", None)


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in small(1).state_dict().items()}
    fresh = small(2)
    load_weights(fresh, save(tmp_path / "w.pth", {"state_dict": state}))
    assert weights_sha256(fresh) == weights_sha256(small(1))


def averaged(path: Path) -> Path:
    """As mmcv's EMAHook leaves a checkpoint: the parameters' average beside the weights, its names without dots."""
    state = small(1).state_dict()
    average = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in small(1).named_parameters()}
    return save(path, {"state_dict": state | average})


@pytest.mark.parametrize(("choice", "shift"), [(True, 1.0), (False, 0.0)])
def test_one_of_two_sets_of_weights_is_chosen(choice: bool, shift: float, tmp_path: Path) -> None:
    fresh = small(2)
    load_weights(fresh, averaged(tmp_path / "w.pth"), LoadOptions(averaged=choice))
    torch.testing.assert_close(fresh[0].weight, small(1)[0].weight + shift, rtol=0, atol=0)
    torch.testing.assert_close(fresh[1].running_var, small(1)[1].running_var, rtol=0, atol=0)


def test_two_sets_of_weights_need_a_choice(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"two sets of weights.*got 4 tensors ema_\.\.\. of 7.*--ema .*--no-ema"):
        load_weights(small(), averaged(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_state": {"backbone_3d.conv.weight": torch.ones(1)}, "epoch": 80}, "OpenPCDet's.*--teacher module:"),
        ({"backbone_3d.conv.weight": torch.ones(1), "dense_head.x": torch.ones(1)}, "OpenPCDet's"),
        ({"state_dict": {"bbox_head.tasks.0.hm.weight": torch.ones(1)}}, r"det3d \(tianweiy/CenterPoint\)"),
        ({"state_dict": {"encoders.lidar.backbone.x": torch.ones(1)}}, "of MIT's BEVFusion.*mmdet3d's projects"),
        ({"state_dict": {"model.0.weight": torch.ones(1)}}, r"the detector as `model`.*removeprefix\('model\.'\)"),
        ({"state_dict": {"ema_0_weight": torch.ones(1)}}, "a moving average alone.*say --ema"),
        ({"pytorch-lightning_version": "2.6", "callbacks": {}}, "Lightning's, not a LiDAR detector's"),
    ],
)  # fmt: skip
def test_other_frameworks_are_recognised(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=said):
        load_weights(small(), save(tmp_path / "w.pth", content))


def test_the_refused_global_is_named_without_colours(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"state_dict": small().state_dict(), "meta": Path("run")})
    with pytest.raises(TeacherError, match=r"got a pickle that asks for pathlib\.PosixPath; expected") as caught:
        load_weights(small(), path)
    assert "\x1b" not in str(caught.value)
