from typing import Any

import pytest
import torch

from cache.errors import ConfigError
from student.config.student import HeadConfig
from student.distill.head_maps import HEAD_MAPS
from student.models.center_head import CenterHead, labels_of_channels


def test_shapes_of_the_network() -> None:
    heatmap, maps = CenterHead(24, HeadConfig(shared_channels=8))(torch.randn(2, 24, 16, 32))
    assert heatmap.shape == (2, 10, 16, 32)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, 6, width, 16, 32) for name, width in HEAD_MAPS.items()
    }
    assert heatmap.sigmoid().mean().item() == pytest.approx(0.1, abs=0.05)


def test_an_unknown_class_is_refused() -> None:
    head = HeadConfig().model_copy(update={"tasks": (("car",), ("tram", "bus"))})  # a configuration refuses it itself
    with pytest.raises(ConfigError, match=r"unknown class; got tram; expected some of car, truck, .*traffic_cone"):
        CenterHead(24, head)


def test_labels_are_those_of_the_project_whatever_the_tasks_order() -> None:
    assert labels_of_channels((("barrier",), ("truck", "car"))) == [5, 1, 0]


def test_mmdet3d_s_weights_load_and_compute_the_same(build_theirs: Any) -> None:
    theirs, ours = build_theirs(), CenterHead(24, HeadConfig(shared_channels=8)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 24, 16, 32)
    heatmap, maps = ours(x)
    (outputs,) = zip(*theirs([x]), strict=True)
    torch.testing.assert_close(heatmap, torch.cat([task["heatmap"] for task in outputs], dim=1))
    for name, value in maps.items():
        torch.testing.assert_close(value, torch.stack([task[name] for task in outputs], dim=1))
