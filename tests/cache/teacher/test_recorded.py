"""What a checkpoint's own configuration says against the one it is loaded into."""

import warnings
from pathlib import Path

import pytest

from cache.errors import OfflineDistillWarning, TeacherError
from cache.teacher.recorded import recorded_values, require_same_training

mmengine = pytest.importorskip("mmengine", reason="the teacher's libraries are not installed")

OLD = """
model = dict(
    type='CenterPoint',
    pts_voxel_layer=dict(voxel_size=[0.075, 0.075, 0.2], point_cloud_range=[-54, -54, -5, 54, 54, 3]),
    pts_bbox_head=dict(tasks=[dict(num_class=1, class_names=['car']), dict(num_class=2, class_names=['bus', 'truck'])]))
data = dict(test=dict(pipeline=[dict(type='LoadPointsFromMultiSweeps', sweeps_num=9, use_dim=[0, 1, 2, 3, 4])]))
"""
"""The text that mmcv kept in 0.x."""


def config(text: str):
    return mmengine.Config.fromstring(text, ".py")


OWN = """
model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size={size}, point_cloud_range={range})),
    pts_bbox_head=dict(tasks=[dict(class_names=['car']), dict(class_names={last})]))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadPointsFromMultiSweeps', sweeps_num={sweeps}, use_dim=[0, 1, 2, 3, 4])]))
"""
SAME = {"size": [0.075, 0.075, 0.2], "range": [-54.0, -54, -5, 54, 54, 3], "last": ["bus", "truck"], "sweeps": 9}


def own(**changes: object):
    return config(OWN.format(**SAME | changes))


def test_the_text_of_a_configuration_is_read_and_not_run() -> None:
    assert recorded_values(OLD) == {
        "voxel_size": [0.075, 0.075, 0.2],
        "point_cloud_range": [-54, -54, -5, 54, 54, 3],
        "classes": [["car"], ["bus", "truck"]],
        "sweeps_num": 9,
        "use_dim": [0, 1, 2, 3, 4],
    }
    assert recorded_values(own().pretty_text) == recorded_values(OLD)
    assert recorded_values("model = dict(voxel_layer=dict(voxel_size=[1 / 0]))") == {}
    assert recorded_values("not Python (") == recorded_values(None) == {}


def test_the_same_training_passes_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same_training(OLD, own(), Path("w.pth"))
        require_same_training(None, own(size=[9, 9, 9]), Path("w.pth"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"size": [0.1, 0.1, 0.2]},
            r"another voxel size .*w\.pth\); got \[0\.075, 0\.075, 0\.2\] in its .*expected \[0\.1, 0\.1, 0\.2\]",
        ),
        (
            {"last": ["truck", "bus"]},
            r"classes in another order .*got \[\['car'\], \['bus', 'truck'\]\] in its own config",
        ),
    ],
)
def test_other_voxels_and_another_order_of_classes_are_refused(change: dict, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        require_same_training(OLD, own(**change), Path("w.pth"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"range": [-51.2, -51.2, -5, 51.2, 51.2, 3]}, r"trained with point_cloud_range \[-54, .* has \[-51\.2, "),
        ({"sweeps": 4}, "trained with sweeps_num 9, and the configuration has 4"),
    ],
)
def test_another_range_and_other_sweeps_are_warned_of(change: dict, said: str) -> None:
    with pytest.warns(OfflineDistillWarning, match=said):
        require_same_training(OLD, own(**change), Path("w.pth"))
