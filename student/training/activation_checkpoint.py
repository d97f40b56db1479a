"""Activation checkpointing: blocks and adapters keep their input and compute the rest again for their gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from student.distill.pairs import LayerPair
from student.models.backbones import Backbone


def recompute_blocks(network: nn.Module) -> None:
    """Checkpoint every residual block, every block of an image backbone and every adapter of several layers in place.

    The state dict keeps its names.

    Loss, gradients and BatchNorm's running statistics are those without: these follow the first pass alone.
    """
    backbones = [module for module in network.modules() if isinstance(module, Backbone)]
    pairs = [module for module in network.modules() if isinstance(module, LayerPair)]
    adapters = [adapter for pair in pairs for adapter in (pair.student_adapter, pair.teacher_adapter)]
    parts = {id(block) for backbone in backbones for block in backbone.stage_blocks()}
    parts |= {id(adapter) for adapter in adapters if isinstance(adapter, nn.Sequential)}
    apply_activation_checkpointing(
        network,
        checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(block, context_fn=partial(_passes, block)),
        check_fn=lambda module: isinstance(module, BasicBlock | Bottleneck) or id(module) in parts,
    )


def _passes(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What the first and the second pass run in."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalises with the batch's statistics as before, but does not count them a second time.

    Not by track_running_stats: the second pass must save the same tensors for the backward pass as the first.
    """
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).sub_(1)
