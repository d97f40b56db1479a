"""Head inheritance (DistillBEV): a student whose task heads start from the teacher's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cache.errors import MismatchError

PREFIX = "task_heads."
SHARED_PREFIX = "shared_conv."
"""Names of the inherited tensors. The shared convolution before the heads often has other input channels."""


@torch.no_grad()
def inherit_head(
    student_head: nn.Module, teacher_head_weights: Mapping[str, Tensor], shared_conv: bool = False
) -> tuple[str, ...]:
    """Copy the teacher's task heads, weights and running statistics, into the student's.

    Args:
        student_head: its state dict has mmdet3d's names (`task_heads.0.reg.0.conv.weight`, ...), as has CenterHead's.
        teacher_head_weights: `TeacherCache.head_weights()`.
        shared_conv: copy the convolution before the task heads, too.

    Returns:
        The names of the copied tensors.

    Raises:
        MismatchError: names or shapes differ; nothing is copied then.
    """
    prefixes = (SHARED_PREFIX, PREFIX) if shared_conv else (PREFIX,)
    ours = {name: tensor for name, tensor in student_head.state_dict().items() if name.startswith(prefixes)}
    theirs = {name: tensor for name, tensor in teacher_head_weights.items() if name.startswith(prefixes)}
    if ours.keys() != theirs.keys() or not ours:
        raise MismatchError(
            "the teacher's task heads are not built like the student's",
            where="distill.inherit_head",
            got=_list("only the teacher has", theirs.keys() - ours.keys()),
            expected=_list("only the student has", ours.keys() - theirs.keys()),
            cure="Set detector.head.tasks to the teacher's tasks, or inherit_head to false",
        )
    other = [name for name, tensor in ours.items() if tensor.shape != theirs[name].shape]
    if other:
        raise MismatchError(
            "the teacher's task heads have other shapes than the student's",
            where=f"{other[0]}" + (f" and {len(other) - 1} more" if other[1:] else ""),
            got=f"teacher {tuple(theirs[other[0]].shape)}",
            expected=f"student {tuple(ours[other[0]].shape)}",
            cure="Set detector.head (tasks, shared_channels) to the teacher's, or inherit_head to false",
        )
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
    return tuple(ours)


def _list(what: str, names: set[str]) -> str:
    if not names:
        return f"{what} nothing"
    first = sorted(names)[:3]
    return f"{what} {', '.join(first)}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
