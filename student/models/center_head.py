"""The centre head (CenterPoint, Yin et al. 2021); `student.models.decoding` turns its maps into boxes.

Classes of all tasks share one heatmap, in the tasks' order; the other maps have one row for each task. The maps' z is
the box's centre; a box's z is its bottom.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.spec import CLASSES
from student.config.student import HeadConfig
from student.distill.head_maps import HEAD_MAPS

PRIOR_LOGIT = -2.19
"""The heatmap's initial bias: a probability of 0.1 everywhere."""

Tasks = tuple[tuple[str, ...], ...]


class CenterHead(nn.Module):
    """A shared convolution, then two for each map of each task; its tensors are named as in mmdet3d's CenterHead.

    Raises:
        ConfigError: a task names an unknown class.
    """

    def __init__(self, in_channels: int, config: HeadConfig) -> None:
        super().__init__()
        labels_of_channels(config.tasks)
        shared = config.shared_channels
        self.shared_conv = _conv_bn_relu(in_channels, shared)
        self.task_heads = nn.ModuleList(TaskHead(shared, classes=len(task)) for task in config.tasks)

    def forward(
        self, x: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B K H W"], dict[str, Float[Tensor, "B T _ H W"]]]:
        """The heatmap's logits and the other maps by name."""
        x = self.shared_conv(x)
        by_task = [task(x) for task in self.task_heads]
        heatmap = torch.cat([maps["heatmap"] for maps in by_task], dim=1)
        return heatmap, {name: torch.stack([maps[name] for maps in by_task], dim=1) for name in HEAD_MAPS}


class TaskHead(nn.Module):
    """The maps of one task by name, the classes' heatmap among them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        for name, width in {**HEAD_MAPS, "heatmap": classes}.items():
            last = nn.Conv2d(channels, width, 3, padding=1)
            if name == "heatmap":
                nn.init.constant_(last.get_parameter("bias"), PRIOR_LOGIT)
            self.add_module(name, nn.Sequential(_conv_bn_relu(channels, channels), last))

    def forward(self, x: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, "B _ H W"]]:
        return {name: branch(x) for name, branch in self.named_children()}


def _conv_bn_relu(in_channels: int, channels: int) -> nn.Sequential:
    """3 x 3 convolution, batch norm and ReLU, named as in mmcv's ConvModule."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU()))


def labels_of_channels(tasks: Tasks) -> list[int]:
    """The label (index into CLASSES) of each of the heatmap's channels.

    Raises:
        ConfigError: a task names an unknown class.
    """
    names = [name for task in tasks for name in task]
    for name in names:
        if name not in CLASSES:
            raise ConfigError(
                "a task of the centre head names an unknown class",
                got=name,
                expected=f"some of {', '.join(CLASSES)}",
                cure="Rename it, or use a head of the nuScenes classes",
            )
    return [CLASSES.index(name) for name in names]
