import pytest
import torch
from torch import nn

from cache.errors import MismatchError
from student.config.student import HeadConfig
from student.distill.inherit import inherit_head
from student.models.center_head import CenterHead


def head(in_channels: int = 8, **config: object) -> nn.Module:
    return CenterHead(in_channels, HeadConfig(shared_channels=4).model_copy(update=config))


def test_task_heads_are_inherited_and_the_shared_convolution_is_not() -> None:
    student, teacher = head(8), head(12)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    shared = student.state_dict()["shared_conv.conv.weight"].clone()
    names = inherit_head(student, teacher.state_dict())
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert {name for name in ours if name.startswith("task_heads.")} == set(names)
    assert "task_heads.0.reg.0.conv.weight" in names
    assert "task_heads.5.heatmap.0.bn.running_mean" in names
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert torch.equal(ours["shared_conv.conv.weight"], shared)


def test_the_shared_convolution_is_inherited_where_its_channels_agree() -> None:
    student, teacher = head(8), head(8)
    names = inherit_head(student, teacher.state_dict(), shared_conv=True)
    assert set(names) == set(student.state_dict())
    assert torch.equal(student.state_dict()["shared_conv.conv.weight"], teacher.state_dict()["shared_conv.conv.weight"])
    with pytest.raises(
        MismatchError, match=r"shared_conv.conv.weight\); got teacher \(4, 12, 3, 3\); expected student"
    ):
        inherit_head(student, head(12).state_dict(), shared_conv=True)


def test_other_tasks_are_refused_and_nothing_is_copied() -> None:
    student, teacher = head(), head(tasks=(("car",), ("bus",)))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(MismatchError, match=r"got only the teacher has nothing; expected only the student has task_he"):
        inherit_head(student, teacher.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_other_shapes_are_refused_by_name() -> None:
    message = (
        r"task_heads.0.reg.0.conv.weight and \d+ more\); got teacher \(6, 6, 3, 3\); expected student \(4, 4, 3, 3\)"
    )
    with pytest.raises(MismatchError, match=message):
        inherit_head(head(), head(shared_channels=6).state_dict())


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(MismatchError, match="not built like the student's"):
        inherit_head(head(), {"backbone.weight": torch.zeros(1)})
