"""A teacher's centre head, rebuilt from the weights that its store keeps."""

import torch

from cache.errors import MismatchError
from cache.store.reader import TeacherCache
from cache.teacher.state_dict import load_state_dict
from student.config.student import HeadConfig
from student.models.center_head import CenterHead


def build_teacher_head(cache: TeacherCache) -> CenterHead:
    """The head in evaluation, its parameters frozen.

    Raises:
        MismatchError: the store lacks the layer `head`, or its head is not built as mmdet3d's CenterHead is by default.
    """
    weights = cache.head_weights()
    channels = cache.spec.layer("head").channels
    shared = weights["shared_conv.conv.weight"].shape[0] if "shared_conv.conv.weight" in weights else 1
    with torch.random.fork_rng(devices=[]):  # the student's first weights do not depend on this head's
        head = CenterHead(channels, HeadConfig(tasks=cache.spec.teacher.tasks, shared_channels=shared))
    if match := load_state_dict(head, weights):
        raise MismatchError(
            "the teacher's head cannot be rebuilt from its weights",
            where=cache.path,
            got=match,
            expected="a CenterHead of 3 x 3 convolutions, two for each map",
            cure="Use a teacher whose head is mmdet3d's CenterHead with its defaults",
        )
    head.eval().requires_grad_(False)
    return head
